//! Attached indexes: what was written is read, and nothing else is.

use super::*;
use crate::oci::Digest;

const LIMITS: fn() -> Limits = Limits::default;

fn name(layer: u8) -> Digest {
    Digest::sha256_of(&[layer])
}

/// Three small layers, the second with digests.
fn parts() -> Vec<AttachedPart> {
    (0..3_u8)
        .map(|layer| {
            let blob = [directory("d/"), file(format!("d/{layer}"), b"hello"), end()].concat();
            let (digest, size) = (name(layer), blob.len() as u64);
            let index = encode(&index_of(&blob).unwrap(), &digest, size, Content::Blob).unwrap();
            let digests = (layer == 1).then(|| {
                let mut digests = ChunkDigests::default();
                blob.chunks(DIGEST_CHUNK as usize).for_each(|chunk| digests.push(chunk));
                digests
            });
            AttachedPart { digest, size, index, digests }
        })
        .collect()
}

fn footer(blob: &[u8]) -> Result<&[u8], CodecError> {
    let length = footer_length(blob, &LIMITS())?;
    let start = (blob.len() as u64).checked_sub(length).ok_or(CodecError::NotAnIndex)?;
    Ok(&blob[start as usize..])
}

type Layers = std::collections::HashMap<Digest, AttachedLayer>;

fn read(blob: &[u8]) -> Result<Layers, CodecError> {
    read_footer(footer(blob)?, blob.len() as u64, &LIMITS(), |_| true)
}

fn piece<'a>(blob: &'a [u8], frame: &Frame) -> &'a [u8] {
    &blob[frame.range.start as usize..frame.range.end as usize]
}

/// Changes the footer's table, and makes its checksum right again.
fn changed(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut blob = write_attached(parts()).unwrap().bytes;
    let end = blob.len() - TRAILER as usize;
    let start = blob.len() - footer(&blob).unwrap().len() + 8;
    change(&mut blob[start..end]);
    let checksum = Digest::sha256_of(&blob[start..end]);
    for (at, digits) in checksum.hex().as_bytes().chunks(2).enumerate() {
        blob[end + at] = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
    }
    blob
}

#[test]
fn what_was_written_is_read() {
    let written = write_attached(parts()).unwrap();
    let blob = &written.bytes;
    assert_eq!(Digest::sha256_of(footer(blob).unwrap()), written.footer);
    let layers = read(blob).unwrap();
    assert_eq!((layers.len(), written.layers), (3, 3));
    for part in parts() {
        let layer = &layers[&part.digest];
        assert_eq!(layer.size, part.size);
        assert!(layer.index.range.start >= written.indexes);
        assert_eq!(layer.open_index(piece(blob, &layer.index), &LIMITS()).unwrap(), part.index);
        let digests = layer.digests.as_ref().map(|frame| layer.open_digests(piece(blob, frame)).unwrap());
        assert_eq!(digests, part.digests);
    }
    let digests = layers[&name(1)].open_digests(piece(blob, layers[&name(1)].digests.as_ref().unwrap())).unwrap();
    let layer = [directory("d/"), file("d/1", b"hello"), end()].concat();
    assert_eq!((digests.get(0), digests.get(1)), (Some(Digest::sha256_of(&layer)), None));

    let one = read_footer(footer(blob).unwrap(), blob.len() as u64, &LIMITS(), |digest| *digest == name(2)).unwrap();
    assert_eq!(one.keys().collect::<Vec<_>>(), [&name(2)], "what a manifest does not have is not kept");
    let none = write_attached(Vec::new()).unwrap();
    assert!(read(&none.bytes).unwrap().is_empty());
}

/// The end of an index is the same for a decoder that knows nothing of footers.
#[test]
fn the_blob_is_zstd_from_start_to_end() {
    let blob = write_attached(parts()).unwrap().bytes;
    let indexes = parts();
    let mut sorted: Vec<_> = indexes.iter().collect();
    sorted.sort_by(|a, b| a.digest.cmp(&b.digest));
    let all = zstd::stream::decode_all(&blob[..]).unwrap();
    assert!(all.ends_with(&sorted.iter().flat_map(|part| part.index.clone()).collect::<Vec<_>>()));
}

/// The dump in `docs/index-format.md` was made when version 1 was new. It must never be made again: a change of the
/// format is a new version.
#[test]
fn the_vector_in_the_documentation_is_read_and_written_byte_for_byte() {
    let text = include_str!("../../../docs/index-format.md");
    let dump = text.split("```vector\n").nth(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let written = write_attached(parts()).unwrap();
    let lines = written.bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let now = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(dump.map(str::trim), Some(&now[..]), "another format needs another version; this one's vector:\n{now}");
    assert!(text.contains(&format!("`{}`", written.footer)), "{}", written.footer);
    assert!(text.contains(&format!("`{}`", written.indexes)), "{}", written.indexes);
}

#[test]
fn what_is_cut_off_anywhere_is_refused() {
    let blob = write_attached(parts()).unwrap().bytes;
    for length in 0..blob.len() {
        assert!(read(&blob[..length]).is_err(), "{length}");
        // What is read of the end may be any piece of it.
        let end = &blob[length..];
        assert!(read_footer(end, blob.len() as u64, &LIMITS(), |_| true).is_err() || end == footer(&blob).unwrap());
    }
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let blob = write_attached(parts()).unwrap().bytes;
    let all = |blob: &[u8]| -> Result<(), CodecError> {
        for layer in read(blob)?.values() {
            layer.open_index(piece(blob, &layer.index), &LIMITS())?;
            if let Some(frame) = &layer.digests {
                layer.open_digests(piece(blob, frame))?;
            }
        }
        Ok(())
    };
    all(&blob).unwrap();
    for at in 0..blob.len() {
        let mut damaged = blob.clone();
        damaged[at] ^= 0x10;
        assert!(all(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn a_footer_that_lies_is_refused() {
    let refused = |change: fn(&mut [u8])| read(&changed(change)).unwrap_err().to_string();
    let outside = "wrong in itself: a frame outside of the blob";
    assert_eq!(refused(|table| table[40..48].copy_from_slice(&u64::MAX.to_le_bytes())), outside);
    assert_eq!(refused(|table| table[48..56].copy_from_slice(&(1_u64 << 40).to_le_bytes())), outside);
    assert_eq!(refused(|table| table[88..96].copy_from_slice(&(1_u64 << 63).to_le_bytes())), outside);
    assert_eq!(refused(|table| table.copy_within(136..272, 0)), "wrong in itself: layers out of order");
    assert!(read(&changed(|_| ())).is_ok());
}

#[test]
fn ten_million_layers_that_are_only_announced_take_no_memory() {
    let mut blob = write_attached(parts()).unwrap().bytes;
    let at = blob.len() - 24;
    blob[at..at + 8].copy_from_slice(&(10_000_000_u64 * 136).to_le_bytes());
    assert_eq!(read(&blob).unwrap_err(), CodecError::Limit { limit: "footer_bytes", max: LIMITS().footer_bytes });
    let few = Limits { footer_bytes: 136 * 2, ..LIMITS() };
    let blob = write_attached(parts()).unwrap().bytes;
    assert!(matches!(footer_length(&blob, &few), Err(CodecError::Limit { .. })));
    assert_eq!(footer_length(&blob, &Limits { footer_bytes: 136 * 3, ..LIMITS() }), Ok(136 * 3 + 64));
}

#[test]
fn a_frame_that_unpacks_to_too_much_is_refused() {
    let bomb = |index: Vec<u8>, digests: Option<ChunkDigests>| {
        let part = AttachedPart { digest: name(0), size: 10, index, digests };
        let blob = write_attached(vec![part]).unwrap().bytes;
        let layers = read(&blob).unwrap();
        (blob, layers[&name(0)].clone())
    };
    let (blob, layer) = bomb(vec![0; 64 << 20], None);
    assert!(blob.len() < 64 << 10);
    let small = Limits { index_bytes: 1 << 20, ..LIMITS() };
    let refused = layer.open_index(piece(&blob, &layer.index), &small).unwrap_err();
    assert_eq!(refused, CodecError::Wrong("a frame of more than it may hold"));
    let mut digests = ChunkDigests::default();
    (0..1000).for_each(|_| digests.push(b""));
    let (blob, layer) = bomb(Vec::new(), Some(digests));
    assert!(layer.open_digests(piece(&blob, layer.digests.as_ref().unwrap())).is_err(), "10 bytes are one chunk");
}

#[test]
fn another_version_says_so() {
    let mut blob = write_attached(parts()).unwrap().bytes;
    let at = blob.len() - 16;
    blob[at] = 2;
    assert_eq!(read(&blob).unwrap_err(), CodecError::Version(2));
    assert_eq!(read(b"").unwrap_err(), CodecError::NotAnIndex);
    assert_eq!(read(&[0; 1000]).unwrap_err(), CodecError::NotAnIndex);
}
