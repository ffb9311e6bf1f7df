//! `credentials.toml`: one token per server, readable by its owner only.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crypto::{Token, TokenKind};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::server::Server;

/// Largest file that is read.
const MAX_FILE: u64 = 256 * 1024;
/// Largest token file that is read.
const MAX_TOKEN_FILE: u64 = 4096;

/// What is kept of one sign-in.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Credential {
    token: String,
    /// Whose it is.
    pub(crate) user: String,
    /// When it ends, RFC 3339, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
}

impl Credential {
    pub(crate) fn new(token: &Token, user: String, expires_at: Option<String>) -> Self {
        Self {
            token: token.expose().to_owned(),
            user,
            expires_at,
        }
    }

    /// The token.
    pub(crate) fn token(&self) -> Result<Token, Error> {
        Token::parse_kind(TokenKind::Api, &self.token).map_err(Error::Token)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The server that was signed in to last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    #[serde(default)]
    servers: BTreeMap<String, Credential>,
}

/// The file, read.
#[derive(Debug)]
pub(crate) struct Credentials {
    path: PathBuf,
    file: File,
}

impl Credentials {
    /// Reads the file in a directory; without one there are no credentials.
    pub(crate) fn load(dir: Option<&Path>) -> Result<Self, Error> {
        let path = dir.ok_or(Error::NoHome)?.join("credentials.toml");
        let failed = |source| Error::File {
            operation: "read",
            path: path.clone(),
            source,
        };
        let handle = match fs::File::open(&path) {
            Ok(handle) => handle,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    path,
                    file: File::default(),
                });
            }
            Err(error) => return Err(failed(error)),
        };
        if handle.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(Error::Exposed(path));
        }
        let mut text = String::new();
        handle
            .take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(failed)?;
        // The parser's own message would quote the line, which may hold a token.
        let file = toml::from_str(&text).map_err(|error| Error::Credentials {
            path: path.clone(),
            why: error
                .message()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
        })?;
        Ok(Self { path, file })
    }

    /// The server that was signed in to last.
    pub(crate) fn default_server(&self) -> Option<&str> {
        self.file.default.as_deref()
    }

    pub(crate) fn get(&self, server: &Server) -> Option<&Credential> {
        self.file.servers.get(&server.to_string())
    }

    /// Keeps a credential and makes its server the default.
    pub(crate) fn put(&mut self, server: &Server, credential: Credential) -> Result<(), Error> {
        self.file.servers.insert(server.to_string(), credential);
        self.file.default = Some(server.to_string());
        self.save()
    }

    /// Forgets a server; whether it was known.
    pub(crate) fn remove(&mut self, server: &Server) -> Result<bool, Error> {
        let known = self.file.servers.remove(&server.to_string()).is_some();
        if self.file.default.as_ref() == Some(&server.to_string()) {
            self.file.default = None;
        }
        if known {
            self.save()?;
        }
        Ok(known)
    }

    /// Replaces the file as a whole, so that a crash leaves the old or the new one.
    fn save(&self) -> Result<(), Error> {
        let failed = |operation: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File {
                operation,
                path,
                source,
            }
        };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create", dir))?;
        let text = toml::to_string(&self.file).map_err(|error| Error::Credentials {
            path: self.path.clone(),
            why: error.to_string(),
        })?;
        let new = self.path.with_extension("toml.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &new)(error));
            }
            _ => {}
        }
        let mut handle = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed("create", &new))?;
        handle
            .write_all(text.as_bytes())
            .and_then(|()| handle.sync_all())
            .map_err(failed("write", &new))?;
        fs::rename(&new, &self.path).map_err(failed("replace", &self.path))
    }
}

/// Reads a token from a file, or from `stdin` for `-`.
pub(crate) fn read_token(path: &Path, stdin: &mut dyn Read) -> Result<Token, Error> {
    let failed = |source| Error::File {
        operation: "read the token in",
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    if path == Path::new("-") {
        stdin
            .take(MAX_TOKEN_FILE)
            .read_to_string(&mut text)
            .map_err(failed)?;
    } else {
        let file = fs::File::open(path).map_err(failed)?;
        file.take(MAX_TOKEN_FILE)
            .read_to_string(&mut text)
            .map_err(failed)?;
    }
    Token::parse_kind(TokenKind::Api, text.trim()).map_err(Error::Token)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use crypto::{OsRandom, Token, TokenKind};

    use super::{Credential, Credentials};
    use crate::Error;
    use crate::server::Server;

    fn token() -> Token {
        Token::generate(TokenKind::Api, &OsRandom::new()).unwrap()
    }

    #[test]
    fn keeps_a_token_per_server_for_its_owner_only() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("choir");
        let (one, other) = (
            Server::default(),
            Server::parse("https://a.example").unwrap(),
        );
        let mut credentials = Credentials::load(Some(&dir)).unwrap();
        assert!(credentials.get(&one).is_none());
        let (first, second) = (token(), token());
        credentials
            .put(&one, Credential::new(&first, "alice".to_owned(), None))
            .unwrap();
        credentials
            .put(&other, Credential::new(&second, "bob".to_owned(), None))
            .unwrap();
        let mut again = Credentials::load(Some(&dir)).unwrap();
        assert_eq!(
            again.get(&one).unwrap().token().unwrap().hash(),
            first.hash()
        );
        assert_eq!(
            again.get(&other).unwrap().token().unwrap().hash(),
            second.hash()
        );
        assert_eq!(again.default_server(), Some("https://a.example"));
        assert_eq!(
            fs::metadata(dir.join("credentials.toml")).unwrap().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert!(again.remove(&other).unwrap());
        assert!(!again.remove(&other).unwrap());
        assert_eq!(
            Credentials::load(Some(&dir)).unwrap().default_server(),
            None
        );
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("credentials.toml");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Credentials::load(Some(temp.path())),
            Err(Error::Exposed(_))
        ));
    }

    #[test]
    fn an_error_in_the_file_does_not_repeat_its_tokens() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("credentials.toml");
        fs::write(&path, "[servers.a]\ntoken = \"choirpat_secret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Credentials::load(Some(temp.path())).unwrap_err();
        assert!(matches!(error, Error::Credentials { .. }));
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
