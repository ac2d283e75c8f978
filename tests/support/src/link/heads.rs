//! Counts the requests of a connection.

const END: &[u8; 4] = b"\r\n\r\n";

/// The heads of HTTP/1 messages without bodies, whatever the pieces they come in.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Bytes of `END` that the last piece ended with.
    matched: usize,
}

impl Heads {
    /// How many heads end in this piece.
    pub fn end_in(&mut self, piece: &[u8]) -> u64 {
        let mut ends = 0;
        for &byte in piece {
            self.matched = match byte {
                byte if byte == END[self.matched] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.matched == END.len() {
                self.matched = 0;
                ends += 1;
            }
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_counted_wherever_they_are_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nHEAD /b HTTP/1.1\r\nX: \r\r\n\r\nGET /c";
        for size in 1..text.len() {
            let mut heads = Heads::default();
            let ends: u64 = text.chunks(size).map(|piece| heads.end_in(piece)).sum();
            assert_eq!(ends, 2, "in pieces of {size}");
        }
    }
}
