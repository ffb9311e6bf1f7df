//! Bearer tokens: `prefix` + base64url(32 random bytes ‖ CRC-32 of prefix and bytes).
//!
//! 36 bytes are exactly 48 characters without padding, so every token has one spelling.
//! The prefix lets a secret scanner find a leaked token; the checksum (IEEE CRC-32, big
//! endian) lets it, and us, refuse a mistyped one without a look into the database. It is
//! no protection: the 256 random bits are.

use std::fmt;
use std::hash::{Hash, Hasher as StdHasher};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq;
use thiserror::Error;
use types::keyless::GATEWAY_TOKEN_PREFIX;
use zeroize::Zeroizing;

use crate::digest::sha256_of_few;
use crate::{ParseDigestError, Random, RandomError, hex};

const RANDOM_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
/// Characters after the prefix.
pub(crate) const BODY_LENGTH: usize = 48;
/// Part of every stored hash; changing it would invalidate all of them.
const HASH_DOMAIN: &str = "choir token v1";

/// What a token opens. A token of one kind is never accepted where another is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// The gateway token of one sandbox start or runner (arch §5).
    Gateway,
    /// An API token, for `choir` and scripts.
    Api,
    /// A session on the control origin.
    Session,
    /// A session on a runtime origin (arch §2).
    Runtime,
    /// An invitation to register.
    Invite,
    /// The one-time link that makes the first admin.
    Setup,
    /// A code that carries a session to a runtime origin, and what binds it to a browser.
    Handover,
    /// What `choir login` polls with until the browser approves.
    Pairing,
}

impl TokenKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Gateway,
        Self::Api,
        Self::Session,
        Self::Runtime,
        Self::Invite,
        Self::Setup,
        Self::Handover,
        Self::Pairing,
    ];

    /// What a token of this kind begins with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Gateway => GATEWAY_TOKEN_PREFIX,
            Self::Api => "choirpat_",
            Self::Session => "choirses_",
            Self::Runtime => "choirrun_",
            Self::Invite => "choirinv_",
            Self::Setup => "choirset_",
            Self::Handover => "choirhov_",
            Self::Pairing => "choirpair_",
        }
    }
}

/// Why a text is not a token. Never carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It begins with none of our prefixes.
    #[error("not one of our tokens: it begins with none of their prefixes")]
    Prefix,
    /// It is a token, of another kind than expected.
    #[error("a token of another kind is needed here")]
    Kind,
    /// It is too short or too long.
    #[error("the token is not complete")]
    Length,
    /// It has a character that no token has.
    #[error("the token has a character that no token has")]
    Character,
    /// Its checksum is wrong: mistyped or made up.
    #[error("the token's checksum is wrong: was it copied completely?")]
    Checksum,
}

/// A well-formed token. Whether it is *valid* only a look-up of its hash can tell.
#[derive(Clone)]
pub struct Token {
    kind: TokenKind,
    text: Zeroizing<String>,
}

impl Token {
    /// A fresh token with 256 random bits.
    ///
    /// # Errors
    /// The random source failed.
    pub fn generate(kind: TokenKind, random: &dyn Random) -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
        random.fill(bytes.as_mut_slice())?;
        let mut body = Zeroizing::new(Vec::with_capacity(RANDOM_BYTES + CHECKSUM_BYTES));
        body.extend_from_slice(bytes.as_slice());
        body.extend_from_slice(&checksum(kind, bytes.as_slice()));
        let mut text = Zeroizing::new(String::with_capacity(kind.prefix().len() + BODY_LENGTH));
        text.push_str(kind.prefix());
        URL_SAFE_NO_PAD.encode_string(body.as_slice(), &mut text);
        Ok(Self { kind, text })
    }

    /// Reads a token of whatever kind.
    ///
    /// # Errors
    /// It is none; the error says why and does not repeat it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (kind, body) = TokenKind::ALL
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?)))
            .ok_or(TokenError::Prefix)?;
        if body.len() != BODY_LENGTH {
            return Err(TokenError::Length);
        }
        let bytes = Zeroizing::new(
            URL_SAFE_NO_PAD
                .decode(body)
                .map_err(|_| TokenError::Character)?,
        );
        let (secret, sum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(TokenError::Length)?;
        if *sum != checksum(kind, secret) {
            return Err(TokenError::Checksum);
        }
        Ok(Self {
            kind,
            text: Zeroizing::new(text.to_owned()),
        })
    }

    /// Reads a token that must be of one kind.
    ///
    /// # Errors
    /// It is none, or of another kind.
    pub fn parse_kind(kind: TokenKind, text: &str) -> Result<Self, TokenError> {
        let token = Self::parse(text)?;
        if token.kind == kind {
            Ok(token)
        } else {
            Err(TokenError::Kind)
        }
    }

    /// What it opens.
    #[must_use]
    pub const fn kind(&self) -> TokenKind {
        self.kind
    }

    /// The token itself: only for the one place that hands it out or sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What is stored and looked up instead of the token.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        Self::hash_of(&self.text)
    }

    /// The same of a text, which need not be a token: none but a token's has its hash.
    #[must_use]
    pub fn hash_of(text: &str) -> TokenHash {
        TokenHash(*sha256_of_few(HASH_DOMAIN, text.as_bytes()).as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?}, …)", self.kind)
    }
}

/// The domain-separated SHA-256 of a token, as it is stored. Plain SHA-256 is enough: there
/// is nothing to guess in 256 random bits. Comparison takes the same time for any two.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Takes bytes that were read back.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

impl Hash for TokenHash {
    fn hash<H: StdHasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

impl FromStr for TokenHash {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex::parse(text).map(Self).ok_or(ParseDigestError)
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// The prefix is part of what is summed up: a token whose prefix was exchanged is none.
fn checksum(kind: TokenKind, secret: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let sum = kind
        .prefix()
        .bytes()
        .chain(secret.iter().copied())
        .fold(!0_u32, |sum, byte| {
            (0..8).fold(sum ^ u32::from(byte), |sum, _| {
                if sum & 1 == 1 {
                    (sum >> 1) ^ 0xEDB8_8320
                } else {
                    sum >> 1
                }
            })
        });
    (!sum).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use types::keyless::is_gateway_token_shaped;

    use super::{Token, TokenError, TokenHash, TokenKind};
    use crate::{OsRandom, Random, RandomError};

    struct Fixed(u8);

    impl Random for Fixed {
        fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
            buffer.fill(self.0);
            Ok(())
        }
    }

    struct Broken;

    impl Random for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), RandomError> {
            Err(RandomError)
        }
    }

    fn fresh(kind: TokenKind) -> Token {
        Token::generate(kind, &OsRandom::new()).unwrap()
    }

    #[test]
    fn a_fresh_token_reads_back_as_its_kind() {
        for kind in TokenKind::ALL {
            let token = fresh(kind);
            let again = Token::parse(token.expose()).unwrap();
            assert_eq!(again.kind(), kind);
            assert_eq!(again.hash(), token.hash());
            assert!(token.expose().starts_with(kind.prefix()));
        }
    }

    #[test]
    fn a_gateway_token_has_the_shape_that_the_keyless_rule_exempts() {
        assert!(is_gateway_token_shaped(fresh(TokenKind::Gateway).expose()));
        assert!(!is_gateway_token_shaped(fresh(TokenKind::Api).expose()));
    }

    #[test]
    fn the_format_stays_what_it_is() {
        // Computed by Python's zlib, base64 and hashlib.
        let token = Token::generate(TokenKind::Api, &Fixed(7)).unwrap();
        assert_eq!(
            token.expose(),
            "choirpat_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwdyMJwe"
        );
        assert_eq!(
            token.hash().to_string(),
            "5beb60494dc6b94db5ea24161d891bebb2ccc7f322f25dac4d4034dae3ec4006"
        );
    }

    #[test]
    fn a_token_of_another_kind_is_refused() {
        let token = fresh(TokenKind::Gateway);
        assert_eq!(
            Token::parse_kind(TokenKind::Api, token.expose()).unwrap_err(),
            TokenError::Kind
        );
        let disguised = token.expose().replace("choirgw_", "choirpat_");
        assert_eq!(Token::parse(&disguised).unwrap_err(), TokenError::Checksum);
    }

    #[test]
    fn debug_shows_the_kind_only() {
        let token = fresh(TokenKind::Session);
        assert_eq!(format!("{token:?}"), "Token(Session, …)");
        assert_eq!(format!("{:?}", token.hash()), "TokenHash(…)");
    }

    #[test]
    fn a_hash_survives_the_database_and_json() {
        let hash = fresh(TokenKind::Invite).hash();
        assert_eq!(hash.to_string().parse::<TokenHash>().unwrap(), hash);
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<TokenHash>(&json).unwrap(), hash);
        assert!(HashSet::from([hash]).contains(&hash));
    }

    #[test]
    fn no_randomness_no_token() {
        assert_eq!(
            Token::generate(TokenKind::Api, &Broken).unwrap_err(),
            RandomError
        );
    }

    proptest! {
        #[test]
        fn one_changed_character_is_noticed(at in 9_usize..57, to in "[A-Za-z0-9_-]") {
            let token = fresh(TokenKind::Api);
            let mut text = token.expose().to_owned();
            prop_assume!(text[at..=at] != to);
            text.replace_range(at..=at, &to);
            prop_assert_eq!(Token::parse(&text).unwrap_err(), TokenError::Checksum);
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC*") {
            let _ = Token::parse(&text);
        }

        #[test]
        fn a_cut_token_is_refused(length in 0_usize..57) {
            let token = fresh(TokenKind::Api);
            prop_assert!(Token::parse(&token.expose()[..length]).is_err());
        }
    }
}
