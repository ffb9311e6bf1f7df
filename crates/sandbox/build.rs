//! Embeds the built desktop: writes a table of the files of `desktop/dist` that
//! `src/desktop/embedded.rs` includes. Without a build the table is empty, and the guest
//! runtime serves a page that says how to make one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=build.rs");
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let desktop = manifest.join("../../desktop");
    let dist = desktop.join("dist");
    let mut files = Vec::new();
    if dist.join("index.html").is_file() {
        println!("cargo:rerun-if-changed={}", dist.display());
        collect(&dist, &dist, &mut files)?;
    } else if desktop.join("package.json").is_file() {
        // A path that does not exist would rebuild this crate every time.
        println!("cargo:rerun-if-changed={}", desktop.display());
    }
    files.sort();

    let mut table = String::from("static FILES: &[File] = &[\n");
    // Copied, so that a build of the desktop at the same time pulls nothing away.
    let out = PathBuf::from(variable("OUT_DIR")?);
    let copies = out.join("desktop");
    fs::create_dir_all(&copies)?;
    for (number, (name, path)) in files.iter().enumerate() {
        let bytes = fs::read(path)?;
        let etag = fnv1a(&bytes);
        let path = copies.join(number.to_string());
        fs::write(&path, &bytes)?;
        writeln!(
            table,
            "    File {{ path: {name:?}, etag: \"\\\"{etag:016x}-{:x}\\\"\", bytes: include_bytes!({:?}) }},",
            bytes.len(),
            path.display().to_string(),
        )
        .map_err(io::Error::other)?;
    }
    table.push_str("];\n");
    fs::write(out.join("desktop.rs"), table)
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(io::Error::other)
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else {
            let name = path.strip_prefix(root).map_err(io::Error::other)?;
            files.push((name.to_string_lossy().into_owned(), path));
        }
    }
    Ok(())
}

/// FNV-1a, 64 bits: tells builds apart, nothing more.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
