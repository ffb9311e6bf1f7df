//! What a program needs to be loaded (elf(5)): nothing, when it is static.

use anyhow::{Context as _, Result, bail, ensure};

/// `p_type` of what we look for.
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

/// `d_tag` of a library that is needed.
const DT_NEEDED: u64 = 1;

/// Demands that a 64-bit little-endian program asks for no loader and no library.
///
/// # Errors
/// It is none, it is cut off, or it asks for one.
pub(crate) fn demand_static(program: &[u8]) -> Result<()> {
    ensure!(
        program.get(..6) == Some(b"\x7fELF\x02\x01".as_slice()),
        "this is no 64-bit little-endian ELF program"
    );
    let (table, size, count) = (word(program, 32)?, half(program, 54)?, half(program, 56)?);
    for number in 0..u64::from(count) {
        let header = table.saturating_add(number.saturating_mul(u64::from(size)));
        let kind = u32::try_from(word(program, header)? & 0xffff_ffff)?;
        if kind == PT_INTERP {
            bail!("it has a loader (PT_INTERP)");
        }
        if kind == PT_DYNAMIC {
            let begin = word(program, header.saturating_add(8))?;
            let length = word(program, header.saturating_add(32))?;
            for entry in (0..length).step_by(16) {
                match word(program, begin.saturating_add(entry))? {
                    0 => break,
                    DT_NEEDED => bail!("it needs a library (DT_NEEDED)"),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn bytes<const N: usize>(program: &[u8], at: u64) -> Result<[u8; N]> {
    let at = usize::try_from(at)?;
    program
        .get(at..at.saturating_add(N))
        .and_then(|bytes| bytes.try_into().ok())
        .context("the program is cut off")
}

fn word(program: &[u8], at: u64) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes(program, at)?))
}

fn half(program: &[u8], at: u64) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes(program, at)?))
}

#[cfg(test)]
mod tests {
    use super::demand_static;

    /// A program with one program header, and a dynamic section behind it.
    fn program(kind: u32, tag: u64) -> Vec<u8> {
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(64 + 56 + 32, 0);
        program[32] = 64;
        program[54] = 56;
        program[56] = 1;
        program[64..68].copy_from_slice(&kind.to_le_bytes());
        program[72] = 64 + 56;
        program[96] = 32;
        program[120..128].copy_from_slice(&tag.to_le_bytes());
        program
    }

    #[test]
    fn what_asks_for_a_loader_or_a_library_is_not_static() {
        demand_static(&program(1, 0)).unwrap();
        demand_static(&program(2, 5)).unwrap();
        assert!(demand_static(&program(2, 1)).is_err());
        assert!(demand_static(&program(3, 0)).is_err());
        assert!(demand_static(&program(2, 0)[..100]).is_err());
        assert!(demand_static(b"#!/bin/sh").is_err());
        // This one is loaded with libraries like every other.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(demand_static(&own).is_err());
    }
}
