use std::collections::BTreeMap;

use super::*;

/// What the model knows of a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Thing {
    File(Vec<u8>),
    Directory,
    Symlink(String),
}

/// By path: what it is, and its time if a member gave it.
pub type Model = BTreeMap<Vec<String>, (Thing, Option<i64>)>;

#[derive(Debug, Clone)]
pub struct Added {
    path: Vec<String>,
    thing: Thing,
    dialect: Dialect,
    mtime: i64,
}

#[derive(Debug, Clone, Copy)]
enum Dialect {
    Gnu,
    Pax,
}

pub fn added() -> impl Strategy<Value = Added> {
    let part = prop_oneof![4 => "[a-d]", 1 => "[a-z]{60,120}", 1 => "[^/\0]{1,30}"];
    let part = part.prop_filter("parts with a meaning", |part| part != "." && part != "..");
    let thing = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..1200).prop_map(Thing::File),
        1 => Just(Thing::Directory),
        1 => "[^\0]{1,200}".prop_map(Thing::Symlink),
    ];
    let dialect = prop_oneof![Just(Dialect::Gnu), Just(Dialect::Pax)];
    (prop::collection::vec(part, 1..5), thing, dialect, 0..i64::from(i32::MAX))
        .prop_map(|(path, thing, dialect, mtime)| Added { path, thing, dialect, mtime })
}

/// The model: names and things. A member that would make a file a directory or the other way round is not written.
pub fn model(members: &[Added]) -> (Vec<u8>, Model) {
    let (mut blob, mut model) = (Vec::new(), BTreeMap::<Vec<String>, (Thing, Option<i64>)>::new());
    for added in members {
        let above = |length: &usize| added.path[..*length].to_vec();
        let blocked = (1..added.path.len())
            .any(|length| model.get(&above(&length)).is_some_and(|(thing, _)| *thing != Thing::Directory));
        let is_directory = |thing: &Thing| *thing == Thing::Directory;
        let other = model.get(&added.path).is_some_and(|(thing, _)| is_directory(thing) != is_directory(&added.thing));
        if blocked || other {
            continue;
        }
        for length in 1..added.path.len() {
            model.entry(above(&length)).or_insert((Thing::Directory, None));
        }
        model.insert(added.path.clone(), (added.thing.clone(), Some(added.mtime)));
        blob.extend(written(added));
    }
    blob.extend(end());
    (blob, model)
}

fn written(added: &Added) -> Vec<u8> {
    let path = added.path.join("/");
    let (flag, data, link) = match &added.thing {
        Thing::File(data) => (b'0', &data[..], ""),
        Thing::Directory => (b'5', &b""[..], ""),
        Thing::Symlink(target) => (b'2', &b""[..], &target[..]),
    };
    let header = Block::new("cut", flag, data.len()).put(136, format!("{:011o}\0", added.mtime).as_bytes());
    match added.dialect {
        Dialect::Gnu => [
            extension(b'L', format!("{path}\0").as_bytes()),
            extension(b'K', format!("{link}\0").as_bytes()),
            header.gnu().with(data),
        ]
        .concat(),
        Dialect::Pax => [pax(b'x', &[("path", &path), ("linkpath", link)]), header.with(data)].concat(),
    }
}

fn read(index: &LayerIndex, blob: &[u8]) -> Model {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(LayerIndex::ROOT, Vec::new())];
    while let Some((directory, above)) = waiting.pop() {
        for child in index.children(directory) {
            let mut path: Vec<String> = above.clone();
            path.push(String::from_utf8(index.name_of(child).to_vec()).unwrap());
            let entry = index.entry(child.entry()).unwrap();
            let thing = match entry.kind {
                Kind::Directory => Thing::Directory,
                Kind::Symlink => Thing::Symlink(String::from_utf8(index.link_target(child.entry()).to_vec()).unwrap()),
                _ => Thing::File(content(index, child.entry(), blob)),
            };
            if thing == Thing::Directory {
                waiting.push((child.entry(), path.clone()));
            }
            found.insert(path, (thing, Some(entry.mtime.secs)));
        }
    }
    found
}

/// Feeds windows of any size around what is asked for, helpful or not.
fn members_in_windows(blob: &[u8], mut dice: Dice) -> Result<(Vec<Member>, bool), ScanError> {
    let mut scanner = Scanner::new(blob.len() as u64, Limits::default());
    let mut members = Vec::new();
    let mut window = 0..0;
    loop {
        match scanner.step(window.start as u64, &blob[window.clone()])? {
            Step::Need(range) => {
                let (before, behind) = (dice.below(2000), dice.below(4000));
                let useless = dice.below(5) == 0;
                let start = (range.start as usize).saturating_sub(before);
                let end = (range.end as usize + behind).min(blob.len());
                window = if useless { start..range.start as usize + dice.below(512) } else { start..end };
                window.end = window.end.min(blob.len());
            }
            Step::Member(member) => members.push(member),
            Step::End { trailing } => return Ok((members, trailing)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_index_is_the_model(members in prop::collection::vec(added(), 0..40)) {
        let (blob, mut model) = model(&members);
        let index = index_of(&blob).unwrap();
        let found = read(&index, &blob);
        for (path, (_, mtime)) in &mut model {
            // A directory that no member made has the time of a member below it.
            *mtime = mtime.or_else(|| found.get(path).and_then(|(_, mtime)| *mtime));
        }
        prop_assert_eq!(found, model);
        prop_assert_eq!(index.warnings().len(), 0);
    }

    #[test]
    fn any_windows_give_the_same_members(members in prop::collection::vec(added(), 0..20), seed in any::<u64>(), cut in 0.0..1.2) {
        let (mut blob, _) = model(&members);
        blob.truncate((blob.len() as f64 * cut) as usize);
        prop_assert_eq!(members_in_windows(&blob, Dice(seed)), members_of(&blob, Limits::default()));
    }

    #[test]
    fn any_blocks_give_members_or_an_error(blocks in prop::collection::vec((prop::collection::vec(any::<u8>(), 512), any::<bool>()), 1..6)) {
        let blob: Vec<u8> = blocks
            .into_iter()
            .flat_map(|(bytes, sound)| {
                let block = Block(bytes.try_into().unwrap());
                if sound { block.put(124, b"00000000777\0").sealed() } else { block.0.to_vec() }
            })
            .collect();
        let _ = index_of(&blob);
    }
}
