//! Keeps the pages of the documentation that are made from the program in step with it.

use std::path::Path;

/// Compares a page with the file that has it. With `UPDATE_DOCS=1` in the environment the file is written instead.
pub(crate) fn assert_current(file: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, page).unwrap();
        return;
    }
    let found = std::fs::read_to_string(path).unwrap();
    assert_eq!(found, page, "{file} is outdated; `UPDATE_DOCS=1 cargo test page_is_current` writes it");
}
