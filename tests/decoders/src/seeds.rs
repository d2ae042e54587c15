//! What a fuzzer begins with: a sound input for each decoder, made from the golden files and the samples of the tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tallybook_agent::protocol::{PROTOCOL, Reply, Request, Shown, Start, encode_frame};
use tallybook_agent::receipts;
use tallybook_agent::transfer::message::{self, FromReceiver, FromSender, Pack};
use tallybook_events::codec;
use tallybook_events::event::KINDS;
use tallybook_events::header::ClaimRef;
use tallybook_events::ids::{BootId, Epoch, Hash, JournalId, LogId, OperationId, Seq};
use tallybook_events::record::Record;
use tallybook_testkit::samples;

/// The seeds of a target; nothing for one that has none.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "guest_text" => guest_text(),
        "host_text" => host_text(),
        "inventory" => inventory(),
        "journal" => journal(),
        "line" => line(),
        "manifest" => manifest(),
        "payload" => payload(),
        "receipts" => receipts(),
        "record" => record(),
        "ssh" => ssh(),
        "store" => store(),
        "transfer" => transfer(),
        _ => Vec::new(),
    }
}

fn with(choice: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut seed = vec![choice];
    seed.extend_from_slice(bytes.as_ref());
    seed
}

/// As [`crate::part`] takes it off.
fn part(bytes: &[u8]) -> Vec<u8> {
    let mut part = u16::try_from(bytes.len())
        .unwrap_or(u16::MAX)
        .to_le_bytes()
        .to_vec();
    part.extend_from_slice(bytes);
    part
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The golden files whose names begin so, by what follows in their names.
fn golden_texts(directory: &str, prefix: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(repository().join(directory)).expect("golden files are there");
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(rest) = name.strip_prefix(prefix) {
            let text = fs::read_to_string(entry.path()).expect("it can be read");
            found.push((rest.to_owned(), text));
        }
    }
    found.sort();
    assert!(
        !found.is_empty(),
        "no golden file in {directory} begins with {prefix}"
    );
    found
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16);
    let bytes = (0..digits.len() / 2).map(|at| byte(at * 2).expect("hex digits"));
    bytes.collect()
}

/// The bytes of golden files of events.
fn golden(prefix: &str) -> Vec<Vec<u8>> {
    let texts = golden_texts("events/tests/golden", prefix);
    texts.into_iter().map(|(_, text)| unhex(&text)).collect()
}

fn record() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for frame in golden("record.") {
        seeds.push(with(0, &frame));
        let (record, _) = Record::read_frame(&frame).expect("a golden record");
        let header = record.header.encode().expect("it was decoded");
        let mut parts = part(&header);
        parts.extend_from_slice(&record.salt);
        parts.extend_from_slice(&record.payload);
        seeds.push(with(1, parts));
        seeds.push(with(2, header));
    }
    for head in golden("segment.") {
        seeds.push(with(3, &head));
        seeds.push(with(4, &head[..head.len() - 32]));
    }
    seeds
}

fn payload() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let choice = |at: usize| u8::try_from(at).unwrap_or(u8::MAX);
    for (at, (kind, _)) in KINDS.iter().enumerate() {
        for frame in golden(&format!("record.{kind}.")) {
            let (record, _) = Record::read_frame(&frame).expect("a golden record");
            seeds.push(with(choice(at), record.payload));
        }
    }
    for (at, prefix) in ["receipt.", "intent.", "fact."].iter().enumerate() {
        for bytes in golden(prefix) {
            seeds.push(with(choice(KINDS.len() + at), bytes));
        }
    }
    let planned = samples::planned(1, &[0]);
    seeds.push(with(
        choice(KINDS.len() + 3),
        codec::encode(&planned).expect("a sample"),
    ));
    for receipt in samples::receipts() {
        let fence = codec::encode(&receipt.fence).expect("a sample");
        seeds.push(with(choice(KINDS.len() + 6), fence));
    }
    let table = tallybook_agent::steps::TABLE;
    for (name, text) in golden_texts("agent/tests/golden", "") {
        let row = table
            .iter()
            .position(|kind| name == format!("{}.hex", kind.kind));
        // The rows follow ten other choices, in as many rounds as a byte has room for.
        let row = row.and_then(|row| (10..200).find(|number| number % table.len() == row));
        for line in text.lines() {
            let Some((what, hex)) = line.split_once(' ') else {
                continue;
            };
            let bytes = unhex(hex);
            seeds.push(with(choice(KINDS.len() + 9), &bytes));
            if let Some(row) = row.filter(|_| what == "params") {
                seeds.push(with(choice(KINDS.len() + row), bytes));
            }
        }
    }
    seeds
}

fn journal() -> Vec<Vec<u8>> {
    let sound = [0, 7, 0, 0, 7, 0, 4, 0, 0, 0, 7, 0];
    let mut seeds = Vec::new();
    for story in 0..3 {
        for flags in [0, 1] {
            let mut seed = vec![flags, story];
            seed.extend_from_slice(&sound);
            seeds.push(seed.clone());
            for harm in [
                [8, 40, 1],
                [9, 90, 0],
                [22, 60, 2],
                [5, 1, 0],
                [6, 1, 0],
                [7, 1, 0],
                [7, 2, 0],
            ] {
                let mut harmed = seed.clone();
                harmed.extend_from_slice(&harm);
                harmed.extend_from_slice(&[0, 3, 0]);
                seeds.push(harmed);
            }
        }
    }
    seeds
}

fn replies() -> Vec<Reply> {
    let receipts = samples::receipts();
    let mut replies: Vec<Reply> = receipts.iter().cloned().map(Reply::Finished).collect();
    replies.extend([
        Reply::Alive,
        Reply::Hello {
            protocol: PROTOCOL,
            program: Some(Hash([8; 32])),
            boot: BootId::from_bytes([9; 16]),
            hostname: "cn1".to_owned(),
            time_unix_us: 1,
            journal: Some(JournalId::from_bytes([4; 16])),
            journal_len: 64,
            seen: Some(samples::mark()),
        },
        Reply::Operations([receipts[0].key.operation].into()),
        Reply::Forgotten(3),
        Reply::Prove(samples::mark()),
        Reply::Admitted,
        Reply::Started(receipts[0].key),
        Reply::BatchEnded {
            unstarted: vec![receipts[0].key],
        },
        Reply::Peer(vec![1, 2, 3].into()),
        Reply::Output {
            bytes: b"hello\n".to_vec().into(),
            stderr: false,
        },
    ]);
    replies
}

fn requests() -> Vec<Request> {
    let receipts = samples::receipts();
    vec![
        Request::Hello {
            protocol: PROTOCOL,
            log: samples::log(),
            host: samples::host("cn1"),
        },
        Request::MakeJournal,
        Request::Receipts {
            shown: Shown {
                newest: vec![1, 2].into(),
                proof: None,
            },
            fence: receipts[0].fence,
            operation: receipts[0].key.operation,
            starts: vec![Start {
                key: receipts[0].key,
                kind: receipts[0].kind.clone(),
            }],
        },
        Request::Operations,
        Request::Forget {
            shown: Shown {
                newest: vec![1, 2].into(),
                proof: Some(vec![3].into()),
            },
            operations: [receipts[0].key.operation].into(),
        },
        Request::Peer(vec![1, 2, 3].into()),
        Request::Stop,
        Request::Resize {
            columns: 80,
            rows: 24,
        },
    ]
}

fn line() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for reply in replies() {
        let frame = encode_frame(&reply).expect("a sample");
        seeds.push(with(1, &frame));
        seeds.push(with(3, part(&frame[4..])));
    }
    let mut all = Vec::new();
    for request in requests() {
        let frame = encode_frame(&request).expect("a sample");
        seeds.push(with(2, part(&frame[4..])));
        all.extend_from_slice(&frame);
    }
    seeds.push(with(0, all));
    seeds
}

fn transfer() -> Vec<Vec<u8>> {
    let pack = Pack {
        id: Hash([3; 32]),
        pieces: vec![(0, 2), (5, 1)],
        zstd: true,
        bytes: vec![1, 2, 3].into(),
    };
    let offer = FromSender::Offer {
        manifest: Hash([7; 32]),
        manifest_len: 10,
    };
    // "a manifest", stored in one block of zstd.
    let stored = [&b"\x28\xb5\x2f\xfd\x20\x0a\x51\x00\x00"[..], b"a manifest"].concat();
    let manifest = FromSender::Manifest {
        len: 10,
        bytes: stored.into(),
    };
    let encoded = |said: FromSender| message::encode(said).expect("a sample");
    let mut in_parts = 10_u16.to_le_bytes().to_vec();
    in_parts.extend(part(&encoded(FromSender::Working)));
    in_parts.extend(part(&encoded(manifest.clone())));
    let want = FromReceiver::Want {
        pieces: vec![(0, 2)],
        more: false,
    };
    // As the journal has them: a variant's name, and its fields.
    let local = b"\x81\xa5Local\x81\xa6pieces\x91\x92\x00\x02";
    vec![
        with(0, encoded(offer)),
        with(0, encoded(manifest)),
        with(0, encoded(FromSender::Pack(pack))),
        with(1, message::encode(want).expect("a sample")),
        with(
            1,
            message::encode(FromReceiver::Credit { packs: 4 }).expect("a sample"),
        ),
        with(2, in_parts),
        with(4, [part(local), part(local)].concat()),
    ]
}

fn manifest() -> Vec<Vec<u8>> {
    use std::os::fd::AsFd;
    let tree = tempfile::tempdir().expect("a directory for a sample");
    let at = |name: &str| tree.path().join(name);
    fs::create_dir_all(at("etc/more")).expect("a sample");
    fs::write(at("etc/hostname"), "web1\n").expect("a sample");
    fs::write(at("etc/empty"), "").expect("a sample");
    fs::hard_link(at("etc/hostname"), at("etc/linked")).expect("a sample");
    std::os::unix::fs::symlink("../etc", at("etc/more/link")).expect("a sample");
    let sparse = fs::File::create(at("sparse")).expect("a sample");
    sparse.set_len(1 << 16).expect("a sample");
    let root = fs::File::open(tree.path()).expect("a sample");
    let built = tallybook_agent::tree::manifest::build(root.as_fd(), &mut |_| {
        std::ops::ControlFlow::Continue(())
    });
    let bytes = built.expect("a sample").encode();
    let mut ranges = part(&[0, 1, 0, 0]);
    ranges.extend_from_slice(&bytes);
    vec![with(0, bytes), with(1, ranges)]
}

fn receipts() -> Vec<Vec<u8>> {
    let mut whole = receipts::encode_head(samples::log(), JournalId::from_bytes([4; 16])).to_vec();
    let mut bodies = Vec::new();
    for receipt in samples::receipts().iter().take(4) {
        whole.extend(receipts::encode(receipt).expect("a sample"));
        bodies.extend(part(&codec::encode(receipt).expect("a sample")));
    }
    let seen = tallybook_agent::fence::Seen {
        log: samples::log(),
        mark: samples::mark(),
    };
    let claim = samples::receipts()[0].fence.claim;
    // What the first layout of that file holds.
    #[derive(serde::Serialize)]
    struct Claims {
        log: LogId,
        epoch: Epoch,
        claim_seq: Seq,
        claims: BTreeMap<OperationId, ClaimRef>,
    }
    let claims = Claims {
        log: samples::log(),
        epoch: samples::mark().epoch,
        claim_seq: claim.seq,
        claims: [(samples::receipts()[0].key.operation, claim)].into(),
    };
    let torn = &whole[..whole.len() - 9];
    let mut zeros = whole.clone();
    zeros.extend_from_slice(&[0; 40]);
    vec![
        with(0, &whole),
        with(0, torn),
        with(0, zeros),
        with(1, bodies),
        with(3, codec::encode(&seen).expect("a sample")),
        with(3, codec::encode(&claims).expect("a sample")),
        with(4, format!("{} 3\n", samples::receipts()[0].key.operation)),
        with(5, b"\x82\xabwas_running\xc3\xa5maker\xc0"),
    ]
}

fn store() -> Vec<Vec<u8>> {
    // A block whose first event begins behind a segment's head, and whose second and third are there too.
    let mut block =
        b"\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x66\x00\x00\x00\x00\x00\x00\x00"
            .to_vec();
    for _ in 0..3 {
        block.extend_from_slice(b"\x20\x03\x00\x00\x11\x22\x33\x44");
    }
    block.resize(2 + 18 + 1024 * 8, 0);
    let head = format!("{} {:020} {}", samples::log(), 7, Hash([8; 32]));
    let claim = codec::encode(&samples::receipts()[0].fence).expect("a sample");
    vec![
        with(0, b"\xa4Head"),
        with(0, b"\x81\xaaWaitBeyond\x05"),
        with(1, b"\xa6Beyond"),
        with(1, b"\x81\xa6Failed\xa2no"),
        with(4, head),
        with(5, block),
        with(6, claim),
        with(253, [&b"\x81\xa6Attach\xc4\x10"[..], &[7; 16]].concat()),
        with(254, b"\xa2Go"),
        with(255, b"\x81\xa6Missed\x05"),
        with(255, b"\x81\xa4Told\xa2{}"),
        with(b'S', b"\xa8host:cn1"),
        with(b'i', [&b"\x92\x05\xc4\x20"[..], &[6; 32]].concat()),
    ]
}

fn host_text() -> Vec<Vec<u8>> {
    [
        (0, "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 1\n"),
        (0, "  1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 77 1\n"),
        (1, "tcp 8080 10.5.0.2 80\nudp 53 10.5.0.3 53\nchain in {\n type nat\n dnat to x\n}\nmap m {\n a : b\n}\n"),
        (2, "# bridge tbbr0 10.5.0.1/16\n"),
        (3, "1700000000 00:16:3e:01:02:03 10.5.0.2 web1 *\n"),
        (3, "00:16:3e:01:02:03,10.5.0.2,web1\n"),
        (4, "deb [signed-by=/k.gpg] http://deb.debian.org/debian bookworm main contrib # c\n"),
        (4, "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\n"),
        (5, "E: Unable to locate package x\nerror\n"),
        (6, "22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\nMemTotal: 1024 kB\n"),
        (7, "[{\"ifname\":\"eth0\",\"addr_info\":[{\"local\":\"10.5.0.2\",\"prefixlen\":16}]}]"),
        (7, " |-- 10.5.0.2\n  /32 host LOCAL\n10.5.0.2 0x1 0x2 00:16:3e:01:02:03 * tbbr0\n"),
        (8, "lxc.rootfs.path = overlay:/a:/b\nlxc.arch = amd64\nlxc.net.0.hwaddr = 00:16:3e:01:02:03\n"),
        (9, "Acquire::http::Proxy \"http://proxy:3142\";\n"),
        (10, "256 SHA256:abc alice (ED25519)\n"),
        (11, "# x\nbridge tbbr0\ngateway 10.5.0.1/16\nforward-address 192.0.2.1\n"),
    ]
    .map(|(choice, text)| with(choice, text))
    .into()
}

fn guest_text() -> Vec<Vec<u8>> {
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAAB3NzaC1yc2EAAAADAQABAAABAQC\n-----END OPENSSH PRIVATE KEY-----\n";
    let mut seeds: Vec<Vec<u8>> = [
        (0, key),
        (0, "password=hunter2 https://me:pw@host/x {\"token\": \"a\"} root:$6$saltsalt$0123456789abcdef./:1\n"),
        (2, "10.5.0.2 web1.example.org 00:16:3e:01:02:03 0123456789abcdef0123456789abcdef\nPrivateKey = x\n"),
        (2, key),
        (3, "127.0.0.1 localhost\n127.0.1.1 web1\n10.5.0.2 web1 other # c\n"),
        (4, "root:$6$abc$def:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n+x\n"),
        (5, "# c\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAB bob\n"),
        (6, "auto eth0\niface eth0 inet static\naddress 10.5.0.2\nmyhostname = web1\n"),
        (7, "plain\r\n\x1b[1mbold\x1b[0m\tx\n"),
    ]
    .map(|(choice, text)| with(choice, text))
    .into();
    seeds.push(with(1, [part(&[b'x'; 80]), part(&[b'y'; 90])].concat()));
    seeds
}

fn inventory() -> Vec<Vec<u8>> {
    let readme = fs::read_to_string(repository().join("README.md")).expect("the page is there");
    let example = readme
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let example = example.expect("the page has an inventory");
    let mut limited = part(b"cn*, !cn2, @all");
    limited.extend_from_slice(example.as_bytes());
    let mut seeds = vec![
        with(0, example),
        with(
            0,
            "[cloud]\nname = \"x\"\n[network]\nsubnet = \"10.7.0.0/16\"\n[groups]\na = [\"h\"]\n[hosts.h]\nlocal = true\n",
        ),
        with(1, "cn1,@web !d1.foo.net *.x all"),
        with(2, limited),
    ];
    for text in [
        "cn1.example.org",
        "container:cn1/web",
        "10.5.0.1/16",
        "00:16:3e:01:02:03",
        "40000-50000",
        "2026-11-23T00:52:58Z",
        "#12",
        "libc6",
        "065cc5fd3432",
        "00:16:3e",
    ] {
        seeds.push(with(3, text));
    }
    let operation = samples::receipts()[0].key.operation;
    seeds.push(with(3, operation.to_string()));
    seeds.push(with(3, Hash([5; 32]).to_string()));
    seeds
}

fn ssh() -> Vec<Vec<u8>> {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgQeGVLQ3GTxQ8xLJ3hTLTXJ8F5uEqfCIcx3TxKxk5Z";
    vec![
        with(0, format!("cn1.example.org {key}\n")),
        with(
            0,
            format!("@revoked * {key}\n@cert-authority *.example.org {key}\n"),
        ),
        with(
            0,
            format!(
                "|1|MDEyMzQ1Njc4OWFiY2RlZmdoaWo=|AAAAAAAAAAAAAAAAAAAAAAAAAAA= {key}\n[*]:22*,!x {key} c\n"
            ),
        ),
        with(
            1,
            "host cn1\nuser adm\nhostname 192.0.2.7\nport 2222\nidentityfile ~/.ssh/a\nproxyjump u@j1:22,j2\nuserknownhostsfile ~/.ssh/kh /x\nproxycommand none\n",
        ),
        with(
            2,
            "skip /usr/lib exec: Permission denied\nplaced /var/lib/tallybook/agent\n",
        ),
        with(3, "root@[fd00::1]:2222"),
        with(3, "adm@cn1:22"),
        with(
            4,
            [part(b"ssh-ed25519"), key.as_bytes()[12..].to_vec()].concat(),
        ),
    ]
}
