//! A brief run of a fuzz target: its seeds, and thousands of things that were made of them. `make fuzz` runs it for longer.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;

/// How one seed becomes something else.
#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    Repeat(Index, Index),
    Splice(Index, Vec<u8>, Index),
}

/// Runs the target of this name over `fuzz/seeds` and what is made of them.
pub(crate) fn briefly(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let files = std::fs::read_dir(&folder).expect("the target has seeds");
    let mut seeds: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() >= 5, "{} has too few seeds", folder.display());
    seeds.sort();
    seeds.iter().for_each(|seed| target(seed));
    let words = [
        "\0", "\\ud800", "\\u0000", "1e999", "-1", "null", "[[[[[[", "}", ",", "\"", "%00", "%", "&tokens=", "\n", "..",
    ];
    let word = select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec());
    let edit = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<Index>(), word).prop_map(|(at, word)| Edit::Insert(at, word)),
        any::<(Index, Index)>().prop_map(|(from, to)| Edit::Remove(from, to)),
        any::<(Index, Index)>().prop_map(|(from, to)| Edit::Repeat(from, to)),
        (any::<Index>(), select(seeds.clone()), any::<Index>())
            .prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
    ];
    // Always the same ones: what is new is looked for by the fuzzer.
    let rng_seed = RngSeed::Fixed(1);
    let config = ProptestConfig { cases: 4_000, failure_persistence: None, rng_seed, ..ProptestConfig::default() };
    proptest!(config, |(seed in select(seeds), edits in vec(edit, 1..6))| {
        target(&edits.into_iter().fold(seed, edited));
    });
}

fn edited(mut bytes: Vec<u8>, edit: Edit) -> Vec<u8> {
    // Positions count to the end, which is one more than there are bytes.
    let at = |index: Index, bytes: &[u8]| index.index(bytes.len() + 1);
    let range = |from: Index, to: Index, bytes: &[u8]| {
        let (from, to) = (at(from, bytes), at(to, bytes));
        from.min(to)..from.max(to)
    };
    match edit {
        Edit::Set(index, byte) => {
            let at = at(index, &bytes);
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
        }
        Edit::Insert(index, word) => {
            let at = at(index, &bytes);
            bytes.splice(at..at, word);
        }
        Edit::Remove(from, to) => drop(bytes.drain(range(from, to, &bytes))),
        Edit::Repeat(from, to) => {
            let range = range(from, to, &bytes);
            let again = bytes[range.clone()].to_vec();
            bytes.splice(range.end..range.end, again);
        }
        Edit::Splice(index, other, from) => {
            bytes.truncate(at(index, &bytes));
            bytes.extend_from_slice(&other[at(from, &other)..]);
        }
    }
    bytes
}
