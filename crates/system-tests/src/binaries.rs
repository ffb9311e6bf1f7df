//! Where the programs under test are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::Identity;

/// The programs of an installation; they live side by side.
const PROGRAMS: &[&str] = &["hypervisor", "supervisor", "sandbox", "choir", "drill"];

/// Our own guest, which takes the place of `sandbox` in some tests.
const HOSTILE: &str = "hostile";

/// A directory with the programs under test.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
    /// The drills, where they were linked statically and lie somewhere else.
    drill: Option<PathBuf>,
}

/// Names the statically linked drills (`cargo xtask test` and `drills` build them and say where).
/// With it set, batteries that other drills ran fail.
pub const STATIC_DRILL: &str = "STATIC_DRILL";

impl Binaries {
    /// The programs that were built in the same target directory and profile as we were.
    ///
    /// # Panics
    /// A program is missing.
    #[must_use]
    pub fn find() -> Self {
        let own = std::env::current_exe().expect("a program has a path");
        let mut dir = own
            .parent()
            .expect("a program lies in a directory")
            .to_owned();
        if dir.ends_with("deps") {
            dir.pop();
        }
        for program in PROGRAMS {
            assert!(
                dir.join(program).is_file(),
                "{program} is not in {}; `cargo build --workspace --bins` builds it",
                dir.display()
            );
        }
        let drill = std::env::var_os(STATIC_DRILL).map(PathBuf::from);
        Self { dir, drill }
    }

    /// The same programs where an identity can reach them: a checkout may lie in a
    /// directory that is only root's. Copies go below `scratch` when they are needed.
    ///
    /// # Panics
    /// A program cannot be copied.
    #[must_use]
    pub fn reachable_for(self, identity: Identity, scratch: &Path) -> Self {
        if !identity.is_other() || is_open_to_all(&self.dir) {
            return self;
        }
        let dir = scratch.join("bin");
        fs::create_dir_all(&dir).expect("a directory for the programs");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        for program in PROGRAMS.iter().chain([&HOSTILE]) {
            let copy = dir.join(program);
            if !copy.exists() {
                fs::copy(self.program(program), copy).expect("a copy of a program");
            }
        }
        Self { dir, drill: None }
    }

    /// A directory below `scratch` with the supervisor and, as `sandbox`, the hostile guest.
    ///
    /// # Panics
    /// A program cannot be copied.
    #[must_use]
    pub fn with_hostile_guest(&self, scratch: &Path) -> PathBuf {
        let dir = scratch.join("hostile");
        fs::create_dir(&dir).expect("a directory for the programs");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        for (program, name) in [("supervisor", "supervisor"), (HOSTILE, "sandbox")] {
            fs::copy(self.dir.join(program), dir.join(name)).expect("a copy of a program");
        }
        dir
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        match &self.drill {
            Some(drill) if name == "drill" => drill.clone(),
            _ => self.dir.join(name),
        }
    }
}

fn is_open_to_all(dir: &Path) -> bool {
    dir.ancestors().all(|part| {
        fs::metadata(part).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    })
}
