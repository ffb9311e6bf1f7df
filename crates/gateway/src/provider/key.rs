//! A provider's key.

use std::fmt;

use http::HeaderValue;

/// A provider's key. It has no `Display` and no revealing `Debug`.
#[derive(Clone)]
pub struct ProviderKey {
    bare: HeaderValue,
    bearer: HeaderValue,
}

/// A key that cannot stand in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the provider key is empty or has characters that cannot stand in a header")]
pub struct ProviderKeyError;

impl ProviderKey {
    /// Takes a key as it stands in its file; surrounding white space is cut off.
    ///
    /// # Errors
    /// When nothing is left, or when a character is not visible ASCII.
    pub fn new(key: &str) -> Result<Self, ProviderKeyError> {
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ProviderKeyError);
        }
        let sensitive = |text: &str| {
            let mut value = HeaderValue::from_str(text).map_err(|_| ProviderKeyError)?;
            value.set_sensitive(true);
            Ok(value)
        };
        Ok(Self {
            bare: sensitive(key)?,
            bearer: sensitive(&format!("Bearer {key}"))?,
        })
    }

    /// For `x-api-key`.
    pub(super) const fn bare(&self) -> &HeaderValue {
        &self.bare
    }

    /// For `Authorization`.
    pub(super) const fn bearer(&self) -> &HeaderValue {
        &self.bearer
    }

    /// Whether the key stands in `text`.
    pub(super) fn occurs_in(&self, text: &[u8]) -> bool {
        let key = self.bare.as_bytes();
        text.windows(key.len()).any(|window| window == key)
    }
}

impl fmt::Debug for ProviderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProviderKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_shows_itself() {
        let key = ProviderKey::new(" sk-canary-1 \n").unwrap();
        assert_eq!(key.bearer(), "Bearer sk-canary-1");
        assert!(key.occurs_in(b"invalid key sk-canary-1 given"));
        let shown = format!("{key:?} {:?} {:?}", key.bare(), key.bearer());
        assert!(!shown.contains("canary"), "{shown}");
        for bad in ["", " \n", "a b", "a\nb", "é"] {
            assert!(ProviderKey::new(bad).is_err(), "{bad:?}");
        }
    }
}
