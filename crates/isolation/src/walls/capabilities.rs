//! Privileges: taken away for good.

use std::io;

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs,
};

/// Drops every capability from every set and makes sure that none comes back: not by a
/// set-user-ID program (bounding set, `no_new_privs`), nor by being or becoming uid 0
/// (secure bits), nor across exec (ambient set).
pub(crate) fn drop_all() -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    // Needs CAP_SETPCAP, which the first process of a user namespace has.
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    drop_bounding_set()?;
    drop_current()
}

/// Drops what this process holds, without touching what it could regain by exec. For the
/// supervisor of an ordinary user, who has no CAP_SETPCAP to empty the bounding set with.
pub(crate) fn drop_current() -> io::Result<()> {
    let none = CapabilitySet::empty();
    Ok(set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?)
}

/// Empties the bounding set, so that no program's file capabilities give any back.
pub(crate) fn drop_bounding_set() -> io::Result<()> {
    // The kernel may know capabilities that this program does not: go on until it refuses.
    for bit in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
