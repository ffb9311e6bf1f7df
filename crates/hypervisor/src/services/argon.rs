//! Argon2id with memory of its own that goes back to the system.
//!
//! Left to itself each hash allocates 19 MiB. Once such a block has been freed, glibc's
//! allocator serves its like from the heap instead of mapping them (`M_MMAP_THRESHOLD` in
//! mallopt(3) grows up to 32 MiB), and the heap of every thread that ever hashed keeps them:
//! a hypervisor that nobody used any more held 150 MiB.

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use crate::error::Error;

/// Reserved for a working memory, in bytes. Above the largest threshold that glibc takes for
/// itself, so that it is mapped and unmapped; only what is used of it is ever resident.
const RESERVED: usize = 33 << 20;

/// Working memory for one hash after another. Overwritten and given back at its end.
pub(super) struct Scratch {
    blocks: Vec<Block>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let needed = Params::default().block_count();
        let mut blocks = Vec::with_capacity(needed.max(RESERVED / Block::SIZE));
        blocks.resize(needed, Block::new());
        Self { blocks }
    }

    /// The hash in the PHC string format. The parameters are OWASP's minimum: Argon2id,
    /// 19 MiB, two passes, one lane.
    ///
    /// # Errors
    /// Argon2 refused; with these parameters it does not.
    pub(super) fn hash(&mut self, password: &[u8], salt: &[u8]) -> Result<String, Error> {
        let refused = |error: argon2::password_hash::Error| Error::internal(error.to_string());
        let params = Params::default();
        let mut out = [0_u8; Params::DEFAULT_OUTPUT_LEN];
        self.fill(
            Algorithm::default(),
            Version::default(),
            &params,
            password,
            salt,
            &mut out,
        )?;
        let hash = PasswordHash {
            algorithm: Algorithm::default().ident(),
            version: Some(Version::default().into()),
            params: ParamsString::try_from(&params).map_err(refused)?,
            salt: Some(Salt::new(salt).map_err(|error| refused(error.into()))?),
            hash: Some(Output::new(&out).map_err(|error| refused(error.into()))?),
        };
        Ok(hash.to_string())
    }

    /// Whether a password belongs to a hash in the PHC string format, compared in constant
    /// time. A string that is none belongs to no password.
    pub(super) fn verify(&mut self, password: &[u8], phc: &str) -> bool {
        let Ok(parsed) = PasswordHash::new(phc) else {
            return false;
        };
        let (Some(salt), Some(expected)) = (parsed.salt, parsed.hash) else {
            return false;
        };
        let Ok(algorithm) = Algorithm::try_from(parsed.algorithm.as_str()) else {
            return false;
        };
        let Ok(version) = parsed
            .version
            .map_or(Ok(Version::default()), Version::try_from)
        else {
            return false;
        };
        let Ok(params) = Params::try_from(&parsed) else {
            return false;
        };
        let mut out = [0_u8; Output::MAX_LENGTH];
        let Some(out) = out.get_mut(..expected.len()) else {
            return false;
        };
        self.fill(algorithm, version, &params, password, &salt, out)
            .is_ok()
            && Output::new(out).is_ok_and(|seen| seen == expected)
    }

    fn fill(
        &mut self,
        algorithm: Algorithm,
        version: Version,
        params: &Params,
        password: &[u8],
        salt: &[u8],
        out: &mut [u8],
    ) -> Result<(), Error> {
        if self.blocks.len() < params.block_count() {
            // A row of an older installation with larger parameters.
            self.blocks.resize(params.block_count(), Block::new());
        }
        Argon2::new(algorithm, version, params.clone())
            .hash_password_into_with_memory(password, salt, out, &mut self.blocks)
            .map_err(|error| Error::internal(error.to_string()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.blocks.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;
    use argon2::Argon2;
    use argon2::password_hash::phc::PasswordHash;
    use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};

    const SALT: &[u8] = b"sixteen bytes...";

    /// What earlier versions stored stays valid, and the other way round.
    #[test]
    fn hashes_are_those_of_the_library() {
        let mut scratch = Scratch::new();
        let ours = scratch.hash(b"correct horse", SALT).unwrap();
        let theirs = Argon2::default()
            .hash_password_with_salt(b"correct horse", SALT)
            .unwrap()
            .to_string();
        assert_eq!(ours, theirs);
        Argon2::default()
            .verify_password(b"correct horse", &PasswordHash::new(&ours).unwrap())
            .unwrap();
        assert!(scratch.verify(b"correct horse", &theirs));
        assert!(!scratch.verify(b"battery staple", &theirs));
        assert!(!scratch.verify(b"correct horse", "no hash at all"));
    }

    #[test]
    fn the_memory_goes_back_to_the_system() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("VmRSS:"))
                .unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        // On several threads, as the blocking pool has them.
        let round = || {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    std::thread::spawn(|| {
                        let mut scratch = Scratch::new();
                        for _ in 0..2 {
                            scratch.hash(b"correct horse", SALT).unwrap();
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
        };
        let before = resident();
        round();
        round();
        let kept = resident().saturating_sub(before);
        assert!(kept < 10 * 1024, "{kept} KiB stayed");
    }
}
