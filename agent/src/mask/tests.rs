//! The mask by examples, and by property: however a stream comes and is cut, nothing of a secret is kept.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::capture::Capture;
use crate::secret::{Secret, Secrets};

fn secrets(given: &[(&str, &[u8])]) -> Secrets {
    let named = |(name, value): &(&str, &[u8])| {
        let name = SecretName::new(name).unwrap();
        (name, Secret::new(value.to_vec()))
    };
    Secrets::new(given.iter().map(named).collect::<BTreeMap<_, _>>())
}

fn text(secrets: &Secrets, input: &str) -> String {
    secrets.mask().apply_text(input)
}

#[test]
fn each_place_where_one_stands_names_it() {
    let known = secrets(&[("pw", b"hunter2!"), ("token", b"abc/def ghi")]);
    for (input, output) in [
        ("a hunter2! b", "a [secret pw] b"),
        ("hunter2!hunter2!", "[secret pw]"),
        ("hunter2!abc/def ghi", "[secret pw][secret token]"),
        ("pw=hunter2", "pw=hunter2"),
        (
            "curl https://u:abc%2Fdef%20ghi@h",
            "curl https://u:[secret token]@h",
        ),
        ("{\"t\":\"abc\\/def ghi\"}", "{\"t\":\"[secret token]\"}"),
        ("abc/def\\ ghi", "[secret token]"),
        ("basic dTpodW50ZXIyIQ==", "basic dTp[secret pw]Q=="),
        ("68756e7465723221", "[secret pw]"),
        ("nothing", "nothing"),
    ] {
        assert_eq!(text(&known, input), output, "{input}");
    }
    assert_eq!(text(&Secrets::default(), "hunter2!"), "hunter2!");
}

#[test]
fn a_long_one_is_found_in_parts_and_over_lines() {
    let value: String = (b'!'..=b'~')
        .map(char::from)
        .cycle()
        .skip(7)
        .step_by(11)
        .take(90)
        .collect();
    let known = secrets(&[("key", value.as_bytes())]);
    assert_eq!(text(&known, &format!("<{value}>")), "<[secret key]>");
    let part = &value[9..60];
    assert_eq!(text(&known, &format!("ü{part}ü")), "ü[secret key]ü");
    let wrapped = format!(
        "x {}\r\n{}\n{} y",
        &value[..40],
        &value[40..80],
        &value[80..]
    );
    assert_eq!(text(&known, &wrapped), "x [secret key] y");
    // 0123…, wrapped as `base64` wraps it.
    let encoded = crate::mask::forms::of(value.as_bytes());
    let encoded = encoded.iter().find(|form| form.len() == 120).unwrap();
    let encoded = String::from_utf8(encoded.clone()).unwrap();
    let wrapped = format!("{}\n{}\n", &encoded[..76], &encoded[76..]);
    assert_eq!(text(&known, &wrapped), "[secret key]\n");
}

#[test]
fn one_that_repeats_itself_is_found_wherever_it_begins() {
    let block = "0123456789abcdef";
    let value = format!("{block}{block}zanotherzblockzz{block}zlastz");
    let known = secrets(&[("key", value.as_bytes())]);
    let part = &value[41..66];
    assert_eq!(part, format!("blockzz{block}zl"));
    assert_eq!(text(&known, &format!("~{part}~")), "~[secret key]~");
}

#[test]
fn each_line_of_one_with_several_is_taken_out() {
    let known = secrets(&[("cert", b"first line\nsecond line\nx\nlast line")]);
    assert_eq!(
        text(&known, "a first line\n\tsecond line\n"),
        "a [secret cert]\n\t[secret cert]\n"
    );
    let terminal = "first line\r\nsecond line\r\nx\r\nlast line\r\n";
    assert_eq!(text(&known, terminal), "[secret cert]\r\n");
}

#[test]
fn one_that_a_bound_cut_is_known_by_what_is_left() {
    let known = secrets(&[("pw", b"correct horse battery")]);
    let mask = known.mask();
    let bounded = b"say correct hor\n[5 bytes dropped]\nbattery now";
    let shown = mask.apply_bounded(bounded, 5);
    assert_eq!(
        shown,
        b"say [secret pw]\n[5 bytes dropped]\n[secret pw] now"
    );
    assert_eq!(
        mask.apply_bounded(bounded, 0),
        bounded,
        "a program printed that line"
    );
}

#[test]
fn what_is_announced_and_declared_is_named_once() {
    let known = secrets(&[("pw", b"hunter2!")]);
    for (input, output) in [
        ("password=hunter2! x", "password=[secret pw] x"),
        ("password: \"hunter2!\"", "password: \"[secret pw]\""),
        ("password=hunter2!more x", "password=[secret pw][removed] x"),
        ("password=[secret of mine", "password=[removed] of mine"),
    ] {
        assert_eq!(known.mask().clean_text(input), output, "{input}");
        assert_eq!(known.mask().clean_text(output), output, "once more");
    }
}

#[test]
fn the_largest_ones_are_known_in_time() {
    let values: Vec<Vec<u8>> = (0..8_u32)
        .map(|number| {
            let hash = blake3::hash(&number.to_le_bytes());
            let mut value = Vec::new();
            for part in 0..128_u32 {
                let more = blake3::hash(&[hash.as_bytes(), &part.to_le_bytes()[..]].concat());
                value.extend(more.to_hex().bytes());
            }
            value
        })
        .collect();
    let names: Vec<String> = (0..8).map(|number| format!("s{number}")).collect();
    let given: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&values)
        .map(|(name, value)| (name.as_str(), &value[..]))
        .collect();
    let begun = std::time::Instant::now();
    let known = secrets(&given);
    let output: Vec<u8> = values.concat().repeat(4);
    let masked = known.mask().apply(&output);
    assert!(masked.len() < 1000, "{}", masked.len());
    let took = begun.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}

/// What a program prints: noise that shares no byte with secrets, and secrets in one form or another.
#[derive(Debug, Clone)]
enum Piece {
    Noise(Vec<u8>),
    Plain,
    Base64(usize),
    Json,
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        proptest::collection::vec(proptest::sample::select(&b"~^|#\n"[..]), 0..90)
            .prop_map(Piece::Noise),
        Just(Piece::Plain),
        (0..3_usize).prop_map(Piece::Base64),
        Just(Piece::Json),
    ]
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for at in 0..4 {
            let six = (bits >> (18 - 6 * at)) & 63;
            out.push(if at <= chunk.len() {
                ALPHABET[six as usize] as char
            } else {
                '='
            });
        }
    }
    out
}

fn printed(pieces: &[Piece], value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Noise(noise) => out.extend(noise),
            Piece::Plain => out.extend(value.as_bytes()),
            Piece::Base64(before) => {
                out.push(b'~');
                out.extend(base64(&[&b"~~"[..*before], value.as_bytes()].concat()).bytes());
                out.push(b'~');
            }
            Piece::Json => out.extend(serde_json::to_string(value).unwrap().bytes()),
        }
    }
    out
}

/// The first stretch of `len` bytes of the value that is in the output.
fn fragment<'a>(output: &[u8], value: &'a [u8], len: usize) -> Option<&'a [u8]> {
    let mut parts = value.windows(len.min(value.len()));
    parts.find(|part| output.windows(part.len()).any(|window| window == *part))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_of_one_is_kept_however_it_comes_and_is_cut(
        value in "[a-zA-Z0-9/+'\"\\\\ ü]{6,120}",
        pieces in proptest::collection::vec(piece(), 1..12),
        cuts in proptest::collection::vec(1..70_usize, 1..40),
        head in 0..200_usize,
        tail in 0..200_usize,
        torn in 0..60_usize,
    ) {
        prop_assume!(!"[secret pw]".contains(&value[..value.floor_char_boundary(6)]));
        let known = secrets(&[("pw", value.as_bytes())]);
        let mut output = printed(&pieces, &value);
        // Its last words may be cut by its end.
        output.truncate(output.len().saturating_sub(torn));
        let mut capture = Capture::new(head, tail);
        let mut stream = Stream::new(known.mask());
        let mut rest = &output[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            capture.push(&stream.push(now));
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        capture.push(&stream.finish());
        let kept = capture.into_bytes();
        let part = fragment(&kept, value.as_bytes(), FRAGMENT_MIN);
        prop_assert_eq!(part, None, "{}", String::from_utf8_lossy(&kept));
        for before in 0..3 {
            let encoded = base64(&[&b"~~"[..before], value.as_bytes()].concat());
            let within = &encoded.as_bytes()[before * 4 / 3..];
            let part = fragment(&kept, within, 9);
            prop_assert_eq!(part, None, "{}", String::from_utf8_lossy(&kept));
        }
    }

    #[test]
    fn a_stream_ends_as_the_whole_does(
        value in "[a-z]{6,80}",
        pieces in proptest::collection::vec(piece(), 1..12),
        cuts in proptest::collection::vec(1..50_usize, 1..20),
    ) {
        let known = secrets(&[("pw", value.as_bytes())]);
        let mut output = printed(&pieces, &value);
        output.push(b'~');
        let mut stream = Stream::new(known.mask());
        let mut streamed = Vec::new();
        let mut rest = &output[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            streamed.extend(stream.push(now));
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        streamed.extend(stream.finish());
        let once = |text: &[u8]| String::from_utf8_lossy(text).replace("[secret pw][secret pw]", "[secret pw]");
        prop_assert_eq!(once(&streamed), once(&known.mask().apply(&output)));
    }

    #[test]
    fn any_bytes_pass_that_show_none(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let known = secrets(&[("pw", b"correct horse battery"), ("key", &[7; 40])]);
        prop_assume!(fragment(&bytes, &[7; 40], 6).is_none());
        prop_assert_eq!(known.mask().apply(&bytes), bytes);
    }
}
