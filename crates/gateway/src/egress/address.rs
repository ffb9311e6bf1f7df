//! Which addresses are on the public internet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not connected to, in any mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `10/8`, `172.16/12`, `192.168/16`, `fc00::/7`.
    Private,
    /// `169.254/16`, `fe80::/10`; cloud metadata lives there.
    LinkLocal,
    /// Metadata services at addresses that look public.
    Metadata,
    /// `100.64/10` (RFC 6598).
    Shared,
    /// Multicast and broadcast.
    Multicast,
    /// Documentation and benchmarks (RFC 5737, 3849, 9637, 2544).
    Documentation,
    /// Everything else that is no global unicast address (RFC 6890).
    Reserved,
    /// An address of the hypervisor's own host: its services may listen there.
    OwnHost,
}

impl AddressClass {
    /// In a sentence about an address.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata service",
            Self::Shared => "carrier-grade NAT",
            Self::Multicast => "multicast",
            Self::Documentation => "documentation or benchmark",
            Self::Reserved => "reserved",
            Self::OwnHost => "host's own",
        }
    }
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Azure's platform service ("wire server"), a public address that only guests reach.
const AZURE_PLATFORM: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Why an address is not public; `None` when it is. IPv6 addresses that carry an IPv4
/// address (mapped, NAT64, 6to4, ISATAP) are as public as what they carry.
#[must_use]
pub fn not_public(address: IpAddr) -> Option<AddressClass> {
    match address {
        IpAddr::V4(address) => not_public_v4(address),
        IpAddr::V6(address) => not_public_v6(address),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<AddressClass> {
    let class = match address.octets() {
        [127, ..] => AddressClass::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => AddressClass::Private,
        [169, 254, ..] => AddressClass::LinkLocal,
        [100, 64..=127, ..] => AddressClass::Shared,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [198, 18..=19, ..] => {
            AddressClass::Documentation
        }
        [224..=239, ..] | [255, 255, 255, 255] => AddressClass::Multicast,
        // This network, IETF assignments, the 6to4 relay, what is kept for the future.
        [0, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => AddressClass::Reserved,
        _ if address == AZURE_PLATFORM => AddressClass::Metadata,
        _ => return None,
    };
    Some(class)
}

fn not_public_v6(address: Ipv6Addr) -> Option<AddressClass> {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return not_public_v4(mapped);
    }
    let segments = address.segments();
    let carried = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    let class = match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressClass::Loopback,
        // NAT64 with the well-known prefix (RFC 6052) reaches what it carries.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => return not_public_v4(carried(high, low)),
        [0xfe80..=0xfebf, ..] => AddressClass::LinkLocal,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => AddressClass::Private,
        [0xff00..=0xffff, ..] => AddressClass::Multicast,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => AddressClass::Documentation,
        // IETF assignments: Teredo, benchmarks, ORCHID.
        [0x2001, 0..=0x1ff, ..] => AddressClass::Reserved,
        [0x2002, high, low, ..] => return not_public_v4(carried(high, low)),
        [0x2000..=0x3fff, _, _, _, interface, 0x5efe, high, low] if interface & 0xfcff == 0 => {
            return not_public_v4(carried(high, low));
        }
        // Global unicast (RFC 4291 §2.4 and IANA's registry).
        [0x2000..=0x3fff, ..] => return None,
        _ => AddressClass::Reserved,
    };
    Some(class)
}

#[cfg(test)]
mod tests {
    use super::{AddressClass, not_public};

    #[test]
    fn what_is_not_public_is_told_by_class() {
        use AddressClass::{
            Documentation, LinkLocal, Loopback, Metadata, Multicast, Private, Reserved, Shared,
        };
        for (address, class) in [
            ("127.0.0.1", Loopback),
            ("127.255.255.254", Loopback),
            ("0.0.0.0", Reserved),
            ("0.1.2.3", Reserved),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("169.254.169.254", LinkLocal),
            ("100.64.0.1", Shared),
            ("100.100.100.200", Shared),
            ("100.127.255.255", Shared),
            ("192.0.0.192", Reserved),
            ("192.0.2.1", Documentation),
            ("198.18.0.1", Documentation),
            ("198.19.255.255", Documentation),
            ("198.51.100.1", Documentation),
            ("203.0.113.1", Documentation),
            ("192.88.99.1", Reserved),
            ("224.0.0.1", Multicast),
            ("239.255.255.255", Multicast),
            ("240.0.0.1", Reserved),
            ("255.255.255.255", Multicast),
            ("168.63.129.16", Metadata),
            ("::", Reserved),
            ("::1", Loopback),
            ("::7f00:1", Reserved),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", LinkLocal),
            ("::ffff:10.0.0.1", Private),
            ("::ffff:0:10.0.0.1", Reserved),
            ("64:ff9b::10.0.0.1", Private),
            ("64:ff9b::7f00:1", Loopback),
            ("64:ff9b:1::1", Reserved),
            ("100::1", Reserved),
            ("2001::1", Reserved),
            ("2001:2::1", Reserved),
            ("2001:10::1", Reserved),
            ("2001:db8::1", Documentation),
            ("3fff::1", Documentation),
            ("2002:7f00:1::1", Loopback),
            ("2002:a00:1::", Private),
            ("2002:a9fe:a9fe::1", LinkLocal),
            ("2a00:1450::5efe:10.0.0.1", Private),
            ("2a00:1450::200:5efe:a00:1", Private),
            ("4000::1", Reserved),
            ("5f00::1", Reserved),
            ("fc00::1", Private),
            ("fd00:ec2::254", Private),
            ("fe80::1", LinkLocal),
            ("fec0::1", Private),
            ("ff02::1", Multicast),
        ] {
            assert_eq!(
                not_public(address.parse().unwrap()),
                Some(class),
                "{address}"
            );
        }
    }

    #[test]
    fn what_is_public_is_left_alone() {
        for address in [
            "1.1.1.1",
            "11.22.33.44",
            "9.255.255.255",
            "100.63.255.255",
            "100.128.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.167.255.255",
            "192.169.0.1",
            "198.17.255.255",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "2a00:1450:4001::200e",
        ] {
            assert_eq!(not_public(address.parse().unwrap()), None, "{address}");
        }
    }
}
