//! What each layer is called in the mount, from a title that somebody else wrote.

use std::collections::{HashMap, HashSet};

use crate::oci::{Descriptor, Digest, Listed, Platform, REF_NAME, UNPACK};

/// NAME_MAX of Linux, in bytes (limits.h).
const LONGEST_NAME: usize = 255;
/// Of Linux, in bytes: a longer title could not be opened. PATH_MAX counts the NUL.
const LONGEST_TITLE: usize = 4095;
const ARCHIVE_ENDINGS: [&str; 9] =
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip"];

/// What a layer is shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Directory,
    File,
}

impl Shape {
    /// As far as the manifest tells; `None`: only the content does. `oras push` calls every file a tar if it is not
    /// told otherwise, so a media type proves nothing where the title says something else.
    pub fn of(layer: &Descriptor) -> Option<Self> {
        let tar = layer.media_type.contains("tar") || layer.media_type.contains("rootfs.diff");
        let unknown = matches!(layer.media_type.as_str(), "" | "application/octet-stream");
        let zip = layer.media_type == "application/zip";
        let unpack = layer.annotations.get(UNPACK).is_some_and(|value| value == "true");
        match layer.title() {
            _ if unpack => Some(Self::Directory),
            Some(title) if archive_stem(title).is_some() => Some(Self::Directory),
            Some(_) if tar || unknown => None,
            _ if zip => Some(Self::Directory),
            None if tar => Some(Self::Directory),
            None if unknown => None,
            _ => Some(Self::File),
        }
    }
}

/// A place in the mount: directories and a name.
pub type Parts = Vec<String>;

/// One place for each layer, no two the same and none below another. `None` for a layer that stands twice in the
/// manifest under one name. What could not be kept as it was written is told in the warnings.
pub fn places(
    layers: &[(Descriptor, Shape)],
    names_in_config: &HashMap<Digest, String>,
) -> (Vec<Option<Parts>>, Vec<String>) {
    let mut warnings = Vec::new();
    let titles: Vec<Option<Parts>> = layers.iter().map(|(layer, shape)| title_parts(layer, *shape)).collect();
    let shared = shared_directories(titles.iter().flatten());
    let names: Vec<Parts> = layers
        .iter()
        .zip(titles)
        .enumerate()
        .map(|(number, ((layer, shape), title))| {
            if let Some(title) = title {
                return title.into_iter().skip(shared).collect();
            }
            if let Some(title) = layer.title() {
                warnings.push(format!("layer {}: {title:?} cannot be a file name", layer.digest));
            }
            let configured = names_in_config.get(&layer.digest).and_then(|name| parts_of(name, *shape));
            match configured.as_deref() {
                Some([name]) if layer.title().is_none() => vec![name.clone()],
                _ => vec![plain_name(number, layer)],
            }
        })
        .collect();
    let blobs: Vec<&Descriptor> = layers.iter().map(|(layer, _)| layer).collect();
    (without_clashes(&blobs, names, plain_name, &mut warnings), warnings)
}

/// The same for the manifests of an index: their platform, their name, or their place in it.
pub fn manifest_places(manifests: &[Listed]) -> (Vec<Option<Parts>>, Vec<String>) {
    let plain = |number, manifest: &Descriptor| format!("manifest-{number:04}-{}", manifest.digest.short());
    let names = manifests.iter().enumerate().map(|(number, Listed { descriptor, platform })| {
        let platform = platform.as_ref().filter(|platform| platform.is_known()).map(Platform::to_string);
        let name = platform.and_then(|name| file_name(&name, '-'));
        let name = name.or_else(|| file_name(descriptor.annotations.get(REF_NAME)?, '_'));
        vec![name.unwrap_or_else(|| plain(number, descriptor))]
    });
    let (names, mut warnings) = (names.collect(), Vec::new());
    let blobs: Vec<&Descriptor> = manifests.iter().map(|manifest| &manifest.descriptor).collect();
    (without_clashes(&blobs, names, plain, &mut warnings), warnings)
}

/// One name, slashes replaced.
pub fn file_name(text: &str, slash: char) -> Option<String> {
    let name = text.replace('/', &slash.to_string());
    let safe = !matches!(name.as_str(), "" | "." | "..") && name.len() <= LONGEST_NAME;
    (safe && !name.contains(char::is_control)).then_some(name)
}

/// The form that is always possible; the number is the place in the manifest, from 0.
fn plain_name(number: usize, layer: &Descriptor) -> String {
    format!("layer-{number:04}-{}", layer.digest.short())
}

fn archive_stem(title: &str) -> Option<&str> {
    ARCHIVE_ENDINGS.iter().find_map(|ending| title.strip_suffix(ending)).filter(|stem| !stem.is_empty())
}

/// Whether a title can be a path of files; where it cannot, a layer has another name.
pub fn is_path(title: &str) -> bool {
    parts_of(title, Shape::File).is_some()
}

fn title_parts(layer: &Descriptor, shape: Shape) -> Option<Parts> {
    parts_of(layer.title()?, shape)
}

fn parts_of(title: &str, shape: Shape) -> Option<Parts> {
    if title.len() > LONGEST_TITLE || title.contains(char::is_control) {
        return None;
    }
    let mut parts: Parts =
        title.split('/').filter(|part| !matches!(*part, "" | "." | "..")).map(str::to_owned).collect();
    let name = parts.last_mut()?;
    if shape == Shape::Directory
        && let Some(stem) = archive_stem(name).filter(|stem| !matches!(*stem, "." | ".."))
    {
        *name = stem.to_owned();
    }
    parts.iter().all(|part| part.len() <= LONGEST_NAME).then_some(parts)
}

/// How many leading directories all titles have in common.
fn shared_directories<'a>(mut titles: impl Iterator<Item = &'a Parts>) -> usize {
    let Some((_, directories)) = titles.next().and_then(|first| first.split_last()) else { return 0 };
    titles.fold(directories.len(), |shared, title| {
        let other = title.split_last().map_or(&[] as &[_], |(_, directories)| directories);
        directories.iter().zip(other).take(shared).take_while(|(a, b)| a == b).count()
    })
}

/// A name that another has too, or that another needs as a directory, gets the short digest appended; if that
/// does not tell them apart, all get their plain name.
fn without_clashes(
    blobs: &[&Descriptor],
    names: Vec<Parts>,
    plain: impl Fn(usize, &Descriptor) -> String,
    warnings: &mut Vec<String>,
) -> Vec<Option<Parts>> {
    let mut seen = HashSet::new();
    let mut places: Vec<Option<Parts>> =
        blobs.iter().zip(names).map(|(blob, name)| seen.insert((&blob.digest, name.clone())).then_some(name)).collect();
    let clashing = clashes(&places);
    if clashing.is_empty() {
        return places;
    }
    for (number, (blob, place)) in blobs.iter().zip(&mut places).enumerate() {
        if let Some(name) = place.as_mut().and_then(|place| place.last_mut()).filter(|_| clashing.contains(&number)) {
            warnings.push(format!("{}: {name:?} names more than one entry", blob.digest));
            let ending = format!("-{}", blob.digest.short());
            name.truncate(name.floor_char_boundary(LONGEST_NAME.saturating_sub(ending.len())));
            name.push_str(&ending);
        }
    }
    if !clashes(&places).is_empty() {
        for (number, (blob, place)) in blobs.iter().zip(&mut places).enumerate() {
            *place = Some(vec![plain(number, blob)]);
        }
    }
    places
}

/// Numbers of the layers whose place is not theirs alone.
fn clashes(places: &[Option<Parts>]) -> HashSet<usize> {
    let mut count: HashMap<&[String], usize> = HashMap::new();
    let mut directories: HashSet<&[String]> = HashSet::new();
    for place in places.iter().flatten() {
        *count.entry(place).or_default() += 1;
        directories.extend((1..place.len()).filter_map(|length| place.get(..length)));
    }
    let clashes = |place: &Parts| {
        count.get(place.as_slice()).is_some_and(|&count| count > 1) || directories.contains(place.as_slice())
    };
    places
        .iter()
        .enumerate()
        .filter(|(_, place)| place.as_ref().is_some_and(clashes))
        .map(|(number, _)| number)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::TITLE;

    fn layer(title: Option<&str>, media_type: &str, content: &str) -> Descriptor {
        Descriptor {
            digest: Digest::sha256_of(content.as_bytes()),
            size: 1,
            media_type: media_type.to_owned(),
            annotations: title.map(|title| (TITLE.to_owned(), title.to_owned())).into_iter().collect(),
        }
    }

    fn tar(title: &str) -> (Descriptor, Shape) {
        (layer(Some(title), "application/vnd.oci.image.layer.v1.tar", title), Shape::Directory)
    }

    fn paths(layers: &[(Descriptor, Shape)]) -> Vec<String> {
        places(layers, &HashMap::new()).0.into_iter().map(|place| place.map_or("-".into(), |p| p.join("/"))).collect()
    }

    #[test]
    fn titles_lose_their_ending_and_shared_directories() {
        assert_eq!(
            paths(&[tar("10000.tar"), tar("10001.tar.gz"), tar("a.tgz"), tar("b.tar.zst")]),
            ["10000", "10001", "a", "b"]
        );
        assert_eq!(
            paths(&[tar("a.tar.bz2"), tar("b.tbz2"), tar("c.tar.xz"), tar("d.txz"), tar("e.zip")]),
            ["a", "b", "c", "d", "e"]
        );
        assert_eq!(paths(&[tar("sample/10000.tar"), tar("sample/10001.tar")]), ["10000", "10001"]);
        assert_eq!(paths(&[tar("x/a/1.tar"), tar("x/b/1.tar")]), ["a/1", "b/1"]);
        assert_eq!(paths(&[tar("only/one.tar")]), ["one"]);
        assert_eq!(paths(&[tar("./a/../1.tar"), tar("/a/2.tar")]), ["1", "2"]);
    }

    #[test]
    fn hostile_titles_are_made_safe_or_replaced() {
        let file = |title: &str| (layer(Some(title), "text/plain", title), Shape::File);
        assert_eq!(paths(&[file("/tmp/signature.txt")]), ["signature.txt"]);
        assert_eq!(paths(&[file("../../etc/passwd")]), ["passwd"]);
        for title in ["", "/", "..", "a\0b", "a\nb", &"x".repeat(256), &"d/".repeat(3000)] {
            let layers = [file(title)];
            let (places, warnings) = places(&layers, &HashMap::new());
            assert_eq!(places[0].as_ref().unwrap()[0], plain_name(0, &layers[0].0), "{title:?}");
            assert_eq!(warnings.len(), 1, "{title:?}");
        }
        assert_eq!(paths(&[tar(".tar")]), [".tar"]);
        assert_eq!(paths(&[tar("...tar")]), ["...tar"]);
    }

    #[test]
    fn clashes_get_the_short_digest() {
        let (a, b) = (tar("a.tar"), tar("a.tgz"));
        let short = |layer: &(Descriptor, Shape)| layer.0.digest.short().to_owned();
        assert_eq!(paths(&[a.clone(), b.clone()]), [format!("a-{}", short(&a)), format!("a-{}", short(&b))]);
        let c = tar("a/c.tar");
        assert_eq!(paths(&[a.clone(), c.clone()]), [format!("a-{}", short(&a)), "a/c".into()]);
        assert_eq!(paths(&[a.clone(), a.clone()]), ["a", "-"], "the same content under the same name is shown once");
        let long = "x".repeat(255);
        let long = [(layer(Some(&long), "t", "1"), Shape::File), (layer(Some(&long), "t", "2"), Shape::File)];
        assert!(paths(&long).iter().all(|path| path.len() == 255));
    }

    #[test]
    fn layers_without_a_title_are_named_by_the_config_or_by_number() {
        let layers = [(layer(None, "tar", "1"), Shape::Directory), (layer(None, "tar", "2"), Shape::Directory)];
        let config = HashMap::from([(layers[0].0.digest.clone(), "t30uxv".to_owned())]);
        let (places, warnings) = places(&layers, &config);
        assert_eq!(places, [Some(vec!["t30uxv".to_owned()]), Some(vec![plain_name(1, &layers[1].0)])]);
        assert!(warnings.is_empty());
        assert!(plain_name(7, &layers[0].0).starts_with("layer-0007-"));
    }

    #[test]
    fn the_shape_is_taken_from_the_manifest_only_where_it_can_be_trusted() {
        let tar = "application/vnd.oci.image.layer.v1.tar";
        for (title, media_type, shape) in [
            (Some("1.tar"), tar, Some(Shape::Directory)),
            (Some("1.tar"), "application/octet-stream", Some(Shape::Directory)),
            (Some("README.md"), tar, None),
            (Some("data"), "application/octet-stream", None),
            (Some("README.md"), "text/markdown", Some(Shape::File)),
            (None, tar, Some(Shape::Directory)),
            (None, "application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Shape::Directory)),
            (None, "", None),
            (None, "application/json", Some(Shape::File)),
            (Some("data"), "application/zip", Some(Shape::Directory)),
            (Some("a.zip"), "application/octet-stream", Some(Shape::Directory)),
        ] {
            assert_eq!(Shape::of(&layer(title, media_type, "")), shape, "{title:?} {media_type}");
        }
    }

    proptest! {
        #[test]
        fn every_layer_has_a_safe_place_of_its_own(titles in prop::collection::vec(
            prop_oneof![
                "[ab./]{0,6}(\\.tar)?",
                "(layer-000[0-9]-)?[a-z0-9]{0,3}",
                any::<String>(),
            ], 0..12), same in any::<bool>())
        {
            let layers: Vec<_> = titles.iter().enumerate().map(|(n, title)| {
                let content = if same { title.clone() } else { n.to_string() };
                (layer(Some(title), "x", &content), if n % 2 == 0 { Shape::Directory } else { Shape::File })
            }).collect();
            let (places, _) = places(&layers, &HashMap::new());
            prop_assert_eq!(places.len(), layers.len());
            let kept: Vec<&Parts> = places.iter().flatten().collect();
            for (n, place) in kept.iter().enumerate() {
                prop_assert!(!place.is_empty());
                for part in place.iter() {
                    prop_assert!(!matches!(part.as_str(), "" | "." | "..") && part.len() <= LONGEST_NAME);
                    prop_assert!(!part.contains('/') && !part.contains(char::is_control));
                }
                for other in kept.iter().skip(n + 1) {
                    prop_assert!(!other.starts_with(place) && !place.starts_with(other), "{:?} {:?}", place, other);
                }
            }
            if !same {
                prop_assert_eq!(kept.len(), layers.len());
            }
        }
    }
}
