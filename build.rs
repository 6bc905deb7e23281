//! Embeds the client bundles that npm put into `client/dist`, if it has: without npm the service builds all the same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    for watched in ["migrations", ".sqlx", "client/dist"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("bundles.rs");
    fs::write(out, bundles(&root.join("client/dist"))).expect("OUT_DIR can be written");
}

/// The source of a slice of `(file name, hash of the contents, contents, the same compressed)`.
fn bundles(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".js") || name.ends_with(".js.map"));
    names.sort();
    let item = |name: &String| {
        let path = folder.join(name);
        println!("cargo:rerun-if-changed={}", path.display());
        let mut hash = DefaultHasher::new();
        fs::read(&path).expect("a bundle can be read").hash(&mut hash);
        let compressed = folder.join(format!("{name}.gz"));
        let compressed = match compressed.exists() {
            true => format!("Some(include_bytes!({compressed:?}))"),
            false => "None".to_owned(),
        };
        format!("({name:?}, \"{:x}\", include_bytes!({path:?}), {compressed}),", hash.finish())
    };
    format!("&[{}]", names.iter().map(item).collect::<String>())
}
