use std::io::Write;

use super::*;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

/// Given in pieces of that size; the content, and whether garbage follows.
fn unpack(packed: &[u8], piece: usize) -> Result<(Vec<u8>, bool), Damage> {
    let mut decoder = Gunzip::gzip();
    let mut content = Vec::new();
    for mut input in packed.chunks(piece) {
        loop {
            let progress = decoder.step(input, false)?;
            content.extend_from_slice(decoder.output());
            input = &input[progress.consumed..];
            if input.is_empty() && !progress.more {
                break;
            }
        }
    }
    decoder.finish()?;
    Ok((content, decoder.trailing()))
}

#[test]
fn members_padding_and_garbage_are_read_as_gzip_reads_them() {
    let packed = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
    for piece in [1, 2, 7, 1000] {
        assert_eq!(unpack(&packed, piece).unwrap(), (b"one two".to_vec(), false), "{piece}");
        let padded = [&packed[..], &[0; 700]].concat();
        assert_eq!(unpack(&padded, piece).unwrap(), (b"one two".to_vec(), false), "{piece}");
        let garbage = [&packed[..], b"\x1fgarbage"].concat();
        assert_eq!(unpack(&garbage, piece).unwrap(), (b"one two".to_vec(), true), "{piece}");
    }
    assert_eq!(unpack(&[&packed[..], b"\x1f"].concat(), 1).unwrap(), (b"one two".to_vec(), true));
}

#[test]
fn every_field_of_the_header_may_be_there() {
    let plain = gzip(b"content");
    let fields: [(u8, &[u8]); 4] = [(FEXTRA, b"\x03\0abc"), (FNAME, b"name\0"), (FCOMMENT, b"\0"), (FHCRC, b"xx")];
    for set in 0..16_u8 {
        let chosen = || fields.iter().enumerate().filter(|(n, _)| set & 1 << n != 0).map(|(_, field)| field);
        let mut packed = plain[..10].to_vec();
        packed[3] = chosen().fold(0, |flags, (flag, _)| flags | flag);
        packed.extend(chosen().flat_map(|(_, bytes)| bytes.iter().copied()));
        packed.extend(&plain[10..]);
        assert_eq!(unpack(&packed, 3).unwrap().0, b"content", "{set}");
    }
    let mut reserved = plain;
    reserved[3] = 0x20;
    assert!(unpack(&reserved, 3).is_err());
}

#[test]
fn damage_is_an_error_wherever_it_is() {
    let packed = gzip(&(0..20_000_u32).flat_map(|n| (n * n).to_le_bytes()).collect::<Vec<_>>());
    for end in (0..packed.len()).step_by(997) {
        assert!(unpack(&packed[..end], 1 << 20).is_err(), "{end}");
    }
    let wrong = |at: usize| {
        let mut packed = packed.clone();
        packed[at] ^= 1;
        unpack(&packed, 1 << 20)
    };
    assert!(wrong(packed.len() - 8).unwrap_err().to_string().contains("CRC32"));
    assert!(wrong(packed.len() - 1).unwrap_err().to_string().contains("length"));
    for at in (10..packed.len()).step_by(1009) {
        assert!(wrong(at).is_err(), "{at}");
    }
}
