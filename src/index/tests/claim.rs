//! Indexes of others: proven member by member, and replaced by the truth without a number that means something else.

use super::*;

fn find(index: &LayerIndex, path: &str) -> EntryId {
    path.split('/').fold(LayerIndex::ROOT, |at, part| index.lookup(at, part.as_bytes()).expect("a path"))
}

fn prove(index: &LayerIndex, path: &str, blob: &[u8]) -> Option<bool> {
    let id = find(index, path);
    let data = index.provable(id)?;
    let mut scanner = Scanner::starting_at(Headers::of(index).before(data), blob.len() as u64, Limits::default());
    loop {
        match scanner.step(0, blob) {
            Ok(Step::Member(member)) if member.next < data => {}
            Ok(Step::Member(member)) => return Some(index.is_of(id, &member)),
            _ => return Some(false),
        }
    }
}

fn archive() -> Vec<u8> {
    let sparse = [("GNU.sparse.map", "10,3,100,2"), ("GNU.sparse.size", "200"), ("GNU.sparse.numblocks", "2")];
    let long = "d/".to_owned() + &"x".repeat(200);
    [
        directory("d/"),
        file("d/a", b"hello"),
        file("d/b", b""),
        // Left out.
        [pax(b'x', &[("path", &"n".repeat(256))]), file("short", &[7; 600])].concat(),
        [pax(b'x', &[("path", &long)]), file("short", &[7; 600])].concat(),
        symlink("l", "d/a"),
        [pax(b'x', &sparse), file("holes", b"abcde")].concat(),
        file("d/twice", b"first"),
        file("d/twice", b"second"),
        file("named", b"again"),
        hard_link("too", "named"),
        end(),
    ]
    .concat()
}

#[test]
fn the_header_before_its_data_proves_a_member() {
    let blob = archive();
    let index = index_of(&blob).unwrap();
    let long = "d/".to_owned() + &"x".repeat(200);
    for path in ["d/a", "d/b", &long, "holes", "d/twice"] {
        assert_eq!(prove(&index, path, &blob), Some(true), "{path}");
    }
    for path in ["named", "too", "l", "d"] {
        assert_eq!(prove(&index, path, &blob), None, "{path}: no header can tell");
    }
}

#[test]
fn no_other_archive_proves_it() {
    let index = index_of(&archive()).unwrap();
    let of = |blocks: &[Vec<u8>]| [blocks.concat(), end(), vec![0; 20 << 10]].concat();
    let others = [
        of(&[directory("d/"), file("d/A", b"hello")]),
        of(&[directory("d/"), file("d/a", b"hello!")]),
        of(&[directory("D/"), file("D/a", b"hello")]),
        of(&[directory("d/"), directory("e/"), file("d/a", b"hello")]),
        of(&[directory("d/"), hard_link("d/a", "x"), filled(b"hello")]),
        of(&[file("d/a", b"hello")]),
        of(&[]),
    ];
    for (number, other) in others.iter().enumerate() {
        assert_eq!(prove(&index, "d/a", other), Some(false), "{number}");
    }
    assert_eq!(prove(&index, "d/a", &of(&[directory("d/"), file("d/a", b"HELLO")])), Some(true), "content is not told");
}

#[test]
fn the_truth_takes_over_the_numbers_of_what_is_the_same() {
    let claimed =
        index_of(&[file("a", b"1"), file("lie", b"22"), file("d/x", b"3"), file("size", b"4")].concat()).unwrap();
    let truth = [file("size", b"44"), file("d/y", b"5"), file("d/x", b"3"), file("b", b""), file("a", b"1")].concat();
    let before = index_of(&truth).unwrap();
    let Renumbered { index, changed } = before.clone().renumbered(&claimed);
    for path in ["a", "d", "d/x"] {
        assert_eq!(find(&index, path), find(&claimed, path), "{path}");
    }
    for path in ["size", "d/y", "b"] {
        assert!(find(&index, path).0 as usize >= claimed.len(), "{path}");
    }
    for path in ["lie", "size"] {
        assert_eq!(index.entry(find(&claimed, path)), None, "{path}");
        assert_eq!(index.segments(find(&claimed, path), 0..9).count(), 0, "{path}");
    }
    for path in ["a", "size", "d", "d/x", "d/y", "b"] {
        let (new, old) = (find(&index, path), find(&before, path));
        assert_eq!(index.entry(new), before.entry(old), "{path}");
        assert_eq!(content(&index, new, &truth), content(&before, old, &truth), "{path}");
    }
    assert_eq!(index.parent(find(&index, "d")), LayerIndex::ROOT);
    let d = find(&claimed, "d");
    let expected = [(LayerIndex::ROOT, "b"), (LayerIndex::ROOT, "lie"), (LayerIndex::ROOT, "size"), (d, "y")];
    assert_eq!(changed, expected.map(|(directory, name)| (directory, name.as_bytes().to_vec())));
}

#[test]
fn a_claim_that_was_true_changes_nothing() {
    let index = index_of(&archive()).unwrap();
    let Renumbered { index: same, changed } = index.clone().renumbered(&index);
    assert_eq!(listing_of(&same), listing_of(&index));
    assert!(changed.is_empty(), "{changed:?}");
    assert_eq!(same.len(), index.len());
}

fn listing_of(index: &LayerIndex) -> Vec<String> {
    (0..index.len() as u32)
        .map(EntryId)
        .map(|id| {
            format!(
                "{:?} {:?} {:?}",
                index.entry(id),
                index.parent(id),
                index.segments(id, 0..u64::MAX).collect::<Vec<_>>()
            )
        })
        .collect()
}
