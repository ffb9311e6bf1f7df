//! Codes that people type: Crockford's base 32, in groups of four.
//!
//! The alphabet has no I, L, O and U. Reading forgives case, spaces, hyphens, and I or L
//! for 1 and O for 0, so that a code copied from paper works.

use std::fmt;

use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{Random, RandomError};

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUP: usize = 4;
/// Longest text that is looked at; a code with its hyphens has 19 characters.
const MAX_TYPED: usize = 64;

/// Why a text is not a code. Never carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CodeError {
    /// Too few or too many characters.
    #[error("the code has {LENGTH} characters in groups of four", LENGTH = .expected)]
    Length {
        /// How many it should have.
        expected: usize,
    },
    /// A character that no code has.
    #[error("the code has only digits and letters, and none of them is U")]
    Character,
}

/// A code of `CHARACTERS` characters, five random bits each, in its normal form: upper case
/// with a hyphen after every fourth character. Hash and compare the normal form.
#[derive(Clone)]
pub struct HumanCode<const CHARACTERS: usize>(Zeroizing<String>);

/// A recovery code: 80 random bits, such as `7K3M-9QXD-2RTC-0HVA`.
pub type RecoveryCode = HumanCode<16>;

/// What `choir login` shows to be compared in the browser: 40 random bits, short-lived and
/// rate-limited, such as `7K3M-9QXD`.
pub type PairingCode = HumanCode<8>;

impl RecoveryCode {
    /// How many codes one set has.
    pub const SET: usize = 10;

    /// A fresh set.
    ///
    /// # Errors
    /// The random source failed.
    pub fn generate_set(random: &dyn Random) -> Result<Vec<Self>, RandomError> {
        (0..Self::SET).map(|_| Self::generate(random)).collect()
    }
}

impl<const CHARACTERS: usize> HumanCode<CHARACTERS> {
    /// A fresh code.
    ///
    /// # Errors
    /// The random source failed.
    pub fn generate(random: &dyn Random) -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new([0_u8; CHARACTERS]);
        random.fill(bytes.as_mut_slice())?;
        // 256 is a multiple of 32: the low five bits of a random byte are unbiased.
        Ok(Self::spell(bytes.iter().map(|byte| byte & 31)))
    }

    /// Reads what a person typed.
    ///
    /// # Errors
    /// It cannot be a code; the error does not repeat it.
    pub fn parse(typed: &str) -> Result<Self, CodeError> {
        let length = CodeError::Length {
            expected: CHARACTERS,
        };
        if typed.len() > MAX_TYPED {
            return Err(length);
        }
        let values = typed
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| value(c).ok_or(CodeError::Character))
            .collect::<Result<Vec<u8>, _>>()
            .map(Zeroizing::new)?;
        if values.len() == CHARACTERS {
            Ok(Self::spell(values.iter().copied()))
        } else {
            Err(length)
        }
    }

    /// The code itself: only for the one place that shows, hashes or compares it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn spell(values: impl Iterator<Item = u8>) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(CHARACTERS + CHARACTERS / GROUP));
        for (index, value) in values.enumerate() {
            if index > 0 && index % GROUP == 0 {
                text.push('-');
            }
            if let Some(character) = ALPHABET.get(usize::from(value)) {
                text.push(char::from(*character));
            }
        }
        Self(text)
    }
}

impl<const CHARACTERS: usize> PartialEq for HumanCode<CHARACTERS> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl<const CHARACTERS: usize> Eq for HumanCode<CHARACTERS> {}

impl<const CHARACTERS: usize> fmt::Debug for HumanCode<CHARACTERS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HumanCode(…)")
    }
}

fn value(character: char) -> Option<u8> {
    let character = match character.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    let at = ALPHABET
        .iter()
        .position(|known| char::from(*known) == character)?;
    u8::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::{CodeError, PairingCode, RecoveryCode};
    use crate::OsRandom;

    #[test]
    fn a_set_has_ten_different_codes_of_eighty_bits() {
        let codes = RecoveryCode::generate_set(&OsRandom::new()).unwrap();
        let texts: HashSet<_> = codes.iter().map(RecoveryCode::expose).collect();
        assert_eq!(texts.len(), 10);
        for text in texts {
            assert_eq!(text.len(), 19);
            assert!(text.split('-').all(|group| group.len() == 4));
        }
    }

    #[test]
    fn forgives_what_people_do_to_codes() {
        let code = RecoveryCode::parse("7K3M-9QXD-01AB-0000").unwrap();
        for typed in [
            " 7k3m9qxd01ab0000",
            "7K3M 9QXD OIAB OOOO",
            "7k3m-9qxd-olab-oooo\n",
        ] {
            assert_eq!(RecoveryCode::parse(typed).unwrap(), code);
        }
        assert_eq!(code.expose(), "7K3M-9QXD-01AB-0000");
        assert_eq!(format!("{code:?}"), "HumanCode(…)");
    }

    #[test]
    fn refuses_what_cannot_be_a_code() {
        let length = CodeError::Length { expected: 16 };
        assert_eq!(RecoveryCode::parse("").unwrap_err(), length);
        assert_eq!(RecoveryCode::parse("7K3M-9QXD").unwrap_err(), length);
        assert_eq!(RecoveryCode::parse(&"-".repeat(500)).unwrap_err(), length);
        assert_eq!(
            RecoveryCode::parse("7K3M-9QXD-01AB-000U").unwrap_err(),
            CodeError::Character
        );
        assert_eq!(
            length.to_string(),
            "the code has 16 characters in groups of four"
        );
        assert!(PairingCode::parse("7K3M-9QXD").is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC*") {
            if let Ok(code) = RecoveryCode::parse(&text) {
                prop_assert_eq!(RecoveryCode::parse(code.expose()).unwrap(), code);
            }
        }
    }
}
