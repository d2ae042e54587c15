//! The server of a host: Debian's BIND, which reads one *generation* of files that is made of the pieces.
//!
//! A generation is a directory with the server's configuration and all of its zones. It is checked where it lies, by BIND's own
//! checker, before a rename of one link makes it the live one; and nothing in it is changed afterwards. The one before it goes
//! once the server answers from the new one: what an undo needs is in the pieces. The host's own configuration of BIND is never
//! touched: a drop-in of the unit names another one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tallybook_events::allocation::Protocol;
use tallybook_events::name::ContainerName;
use tallybook_events::step::{FailureClass, StepFailure};

use super::answers::{Serials, await_serials};
use super::files::{self, Key, RECEIVED};
use super::{Amendment, Service, View};
use crate::durable;
use crate::layout::Layout;
use crate::network::{managed, ports, unit};
use crate::secret::SecretName;
use crate::step::{Context, Program, fail, failure, io_failure};
use crate::steps::host_directories::{self, remove_empty};

/// The unit of Debian's BIND.
pub const UNIT: &str = "named.service";
/// What a process carries that was started with the drop-in.
const ASSIGNMENT: &str = "TALLYBOOK_NAMED=1";

/// Where the server's files are. BIND may read here, by its profile of AppArmor, and only root may write.
impl Layout {
    /// All that is the tool's own.
    pub fn dns(&self) -> PathBuf {
        self.root.join("etc/bind/tallybook")
    }

    /// The service.
    pub fn dns_service(&self) -> PathBuf {
        self.dns().join("service")
    }

    /// An amendment a container.
    pub fn dns_amendments(&self) -> PathBuf {
        self.dns().join("containers")
    }

    /// The keys of the views, as each step wrote them that was given others.
    fn dns_keys(&self) -> PathBuf {
        self.dns().join("keys")
    }

    fn dns_generations(&self) -> PathBuf {
        self.dns().join("generations")
    }

    /// The link to the generation that counts.
    pub fn dns_live(&self) -> PathBuf {
        self.dns().join("live")
    }

    /// Which generation the server was last told to read.
    fn dns_told(&self) -> PathBuf {
        self.dns().join("told")
    }

    /// Where the server keeps what it has from elsewhere.
    fn dns_received(&self) -> PathBuf {
        self.root.join("var/cache/bind")
    }

    /// The drop-in of the server's unit.
    pub fn dns_unit(&self) -> PathBuf {
        self.units.join(format!("{UNIT}.d/tallybook.conf"))
    }
}

/// How the server's unit was before the tool had it read other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Whether it was started at boot.
    pub enabled: bool,
    /// Whether it ran.
    pub active: bool,
}

/// The service as it is kept on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What is answered.
    pub service: Service,
    /// The name of the file with the views' keys.
    pub keys: Option<String>,
    /// How the unit was.
    pub before: Before,
}

/// What the pieces come to.
pub struct Generation {
    /// Its directory, where it is another one than the live one.
    fresh: Option<PathBuf>,
    /// Its serials.
    pub serials: Serials,
}

/// A piece as text.
///
/// # Errors
/// When it has none.
pub fn text<T: Serialize>(piece: &T) -> Result<String, StepFailure> {
    let text = serde_json::to_string_pretty(piece);
    text.map(|text| text + "\n")
        .map_err(|error| failure(FailureClass::Unknown, &error))
}

/// A piece of the host; `None` where it is not there.
///
/// # Errors
/// When it can't be read or understood, or is somebody else's.
fn piece<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StepFailure> {
    let body = managed::body(path)?;
    let read = |body: String| {
        serde_json::from_str(&body).map_err(|error| {
            let message = format!("{} is not understood: {error}", path.display());
            fail(FailureClass::Verification, message)
        })
    };
    body.map(read).transpose()
}

/// The service of the host.
///
/// # Errors
/// When it is there and can't be read.
pub fn kept(layout: &Layout) -> Result<Option<Kept>, StepFailure> {
    piece(&layout.dns_service())
}

/// What containers have since, by their names.
fn amendments(layout: &Layout) -> Result<BTreeMap<ContainerName, Amendment>, StepFailure> {
    let directory = layout.dns_amendments();
    let mut all = BTreeMap::new();
    for name in managed::list(&directory)? {
        let path = directory.join(&name);
        let Ok(container) = ContainerName::new(&name) else {
            continue;
        };
        if let Some(amendment) = piece(&path)? {
            all.insert(container, amendment);
        }
    }
    Ok(all)
}

/// Whether two services come to the same answers here, with what containers have since.
///
/// # Errors
/// When that can't be read.
pub fn says_same(layout: &Layout, one: &Service, other: &Service) -> Result<bool, StepFailure> {
    let rest = |service: &Service| Service {
        records: Vec::new(),
        as_of: one.as_of,
        ..service.clone()
    };
    let amendments = amendments(layout)?;
    Ok(rest(one) == rest(other)
        && files::zones(one, &amendments) == files::zones(other, &amendments))
}

/// Makes the directories that everything else is in; whether one was missing.
///
/// # Errors
/// When one can't be made.
pub fn make_directories(layout: &Layout) -> Result<bool, StepFailure> {
    let mut changed = false;
    for path in [
        layout.dns(),
        layout.dns_amendments(),
        layout.dns_keys(),
        layout.dns_generations(),
    ] {
        changed |= host_directories::make(&path, 0o755)?;
    }
    Ok(changed)
}

/// How the server's unit is, for [`Kept::before`].
///
/// # Errors
/// When systemd can't be asked.
pub fn look(context: &mut Context<'_>) -> Result<Before, StepFailure> {
    let seen = unit::look(context, UNIT)?;
    Ok(Before {
        enabled: seen.enabled,
        active: seen.active,
    })
}

/// Stops the server, also for the next boot.
///
/// # Errors
/// When systemd can't be had to.
pub fn switch_off(context: &mut Context<'_>) -> Result<(), StepFailure> {
    context.run(&Program::new([
        "systemctl",
        "--quiet",
        "disable",
        "--now",
        UNIT,
    ]))?;
    Ok(())
}

/// Refuses where somebody else has configured the server, or another program has its port.
///
/// # Errors
/// Says whose it is; or when that can't be told.
pub fn refuse_others(context: &mut Context<'_>, service: &Service) -> Result<(), StepFailure> {
    let asked = Program::new([
        "dpkg-query",
        "--show",
        "--showformat=${Conffiles}\\n",
        "bind9",
    ]);
    let ended = context.run(&asked)?;
    let known = String::from_utf8_lossy(&ended.stdout);
    let sums = known.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (path, sum) = (words.next()?, words.next()?);
        let is_named = path.starts_with("/etc/bind/named.conf") || path == "/etc/default/named";
        is_named.then(|| format!("{sum}  {path}\n"))
    });
    let sums: String = sums.collect();
    let check = Program::new(["md5sum", "--check", "--ignore-missing"]).stdin(sums);
    let ended = context.link.run(&check)?;
    let said = String::from_utf8_lossy(&ended.stdout);
    let mut lines = said.lines();
    if let Some(path) = lines.find_map(|line| line.strip_suffix(": FAILED")) {
        let message = format!(
            "somebody else has configured BIND on this host: {path} is not as its package has it"
        );
        let mut failure = fail(FailureClass::Exists, message);
        failure.hint = Some(format!(
            "move what it says into the inventory, then have it as the package has it: rm {path} && apt-get install --reinstall -o Dpkg::Options::=--force-confmiss bind9"
        ));
        return Err(failure);
    }
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        for listener in ports::listeners(context.layout, protocol)? {
            let at = listener.address;
            let is_known = matches!(at, IpAddr::V4(at) if service.not_at.contains(&at));
            // The server is asked there, once it runs.
            let is_in_the_way = at == IpAddr::V4(Ipv4Addr::LOCALHOST) || listener.meets(None);
            if listener.port != 53 || is_known || !is_in_the_way {
                continue;
            }
            let holder = listener.holder(context.layout);
            if !holder.starts_with("named ") {
                let message = format!(
                    "{holder} listens on {protocol} port 53 of {}",
                    listener.address
                );
                let mut failure = fail(FailureClass::Exists, message);
                failure.hint = Some(format!(
                    "stop {holder}: BIND answers on every address of the host but the bridge's"
                ));
                return Err(failure);
            }
        }
    }
    Ok(())
}

/// Writes the keys of the views, made of a secret, to a file that the server may read and nobody else; the name of the file
/// that has them, which is one from before where that has the same.
///
/// # Errors
/// When it can't be written.
pub fn write_keys(
    context: &mut Context<'_>,
    secret: &SecretName,
    before: Option<&str>,
) -> Result<String, StepFailure> {
    const SCRIPT: &str = r#"set -eu
umask 077
rm -f "$1"
text=$(printf %s "$(printenv "$2")" | base64 --wrap=0)
for view in inside outside; do
    printf 'key "tallybook-%s" { algorithm hmac-sha256; secret "%s"; };\n' "$view" "$text"
done >"$1"
chgrp bind "$1"
chmod 640 "$1"
sync "$1"
"#;
    let (operation, step) = context.origin;
    let name = format!("{operation}-{step}");
    let path = context.layout.dns_keys().join(&name);
    let program = Program::new([
        "sh".to_owned(),
        "-c".to_owned(),
        SCRIPT.to_owned(),
        "keys".to_owned(),
        path.display().to_string(),
        secret.variable(),
    ]);
    context.run(&program.secret(secret))?;
    let read = |path: &Path| fs::read(path).map_err(|e| io_failure("reading", path, &e));
    if let Some(before) = before.filter(|before| *before != name) {
        let there = context.layout.dns_keys().join(before);
        if there.exists() && read(&there)? == read(&path)? {
            durable::remove(&path)?;
            return Ok(before.to_owned());
        }
    }
    durable::sync_dir(&context.layout.dns_keys())?;
    Ok(name)
}

/// Removes the keys that a step wrote.
///
/// # Errors
/// When they can't be removed.
pub fn remove_keys(context: &Context<'_>) -> Result<(), StepFailure> {
    let (operation, step) = context.origin;
    let name = format!("{operation}-{step}");
    durable::remove(&context.layout.dns_keys().join(name))?;
    Ok(())
}

/// The number of a generation's directory.
fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

/// The directories of all generations.
fn generations(layout: &Layout) -> Result<Vec<PathBuf>, StepFailure> {
    let directory = layout.dns_generations();
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_failure("listing", &directory, &error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: Result<Vec<PathBuf>, _> = paths.collect();
    paths.map_err(|error| io_failure("listing", &directory, &error))
}

/// The directory of the live generation.
fn live(layout: &Layout) -> Option<PathBuf> {
    let target = fs::read_link(layout.dns_live()).ok()?;
    Some(layout.dns().join(target))
}

/// What the pieces come to, held against the live generation.
struct Wanted {
    kept: Kept,
    texts: BTreeMap<Key, files::Text>,
    /// The serials of zones that are in the live generation, and whether what they say is still the same.
    there: BTreeMap<Key, (u32, bool)>,
    /// Whether the live generation has all of it and nothing else.
    is_live: bool,
}

fn want(layout: &Layout, kept: Kept) -> Result<Wanted, StepFailure> {
    let texts = files::zones(&kept.service, &amendments(layout)?);
    let live = live(layout);
    let mut there = BTreeMap::new();
    let mut names = BTreeSet::new();
    if let Some(live) = &live {
        for view in View::ALL {
            let directory = live.join(view.label());
            let listed = managed::list(&directory)?.into_iter();
            names.extend(listed.map(|name| (view, name)));
        }
    }
    for (key @ (view, zone), text) in &texts {
        let name = files::name(zone);
        let Some(live) = live
            .as_ref()
            .filter(|_| names.remove(&(*view, name.clone())))
        else {
            continue;
        };
        let path = live.join(view.label()).join(name);
        let file = fs::read_to_string(&path).map_err(|e| io_failure("reading", &path, &e))?;
        let same = text.serial_of(&file);
        if let Some(serial) = same.or_else(|| files::serial(&file)) {
            there.insert(key.clone(), (serial, same.is_some()));
        }
    }
    let has_configuration = |live: &PathBuf| {
        let text = fs::read_to_string(live.join("named.conf")).unwrap_or_default();
        text == configuration(layout, &kept, live)
    };
    let is_whole = texts
        .keys()
        .all(|key| there.get(key).is_some_and(|(_, is_same)| *is_same));
    let is_live = names.is_empty() && is_whole && live.as_ref().is_some_and(has_configuration);
    Ok(Wanted {
        kept,
        texts,
        there,
        is_live,
    })
}

fn configuration(layout: &Layout, kept: &Kept, generation: &Path) -> String {
    let keys = kept.keys.as_ref().map(|name| layout.dns_keys().join(name));
    let received = layout.dns_received();
    files::configuration(&kept.service, generation, &received, keys.as_deref())
}

/// The serial of something that is written now for the first time: the day, and the hundredth of it that it is.
fn serial_now(context: &mut Context<'_>) -> Result<u32, StepFailure> {
    let ended = context.run(&Program::new(["date", "--utc", "+%Y%m%d %H %M"]))?;
    let said = String::from_utf8_lossy(&ended.stdout);
    let numbers: Vec<u32> = said
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let [day, hour, minute] = numbers[..] else {
        let message = format!("date says {:?}", said.trim());
        return Err(fail(FailureClass::Unknown, message));
    };
    let hundredth = (hour * 60 + minute) * 100 / (24 * 60);
    Ok(day.saturating_mul(100).saturating_add(hundredth))
}

/// Writes what the pieces come to with this service, where that is not live already, and has BIND check it. Nothing that is
/// live changes.
///
/// # Errors
/// When it can't be written, or BIND would not take it: of that nothing is left.
pub fn stage(context: &mut Context<'_>, kept: &Kept) -> Result<Generation, StepFailure> {
    let layout = context.layout;
    let wanted = want(layout, kept.clone())?;
    let mut serials = Serials::new();
    if wanted.is_live {
        for ((view, zone), (serial, _)) in wanted.there {
            serials.entry(zone).or_default().insert(view, serial);
        }
        let fresh = None;
        return Ok(Generation { fresh, serials });
    }
    // Another one that was cut while it was written is left as it is, and goes once this one is live.
    let newest = generations(layout)?
        .iter()
        .filter_map(|path| number(path))
        .max();
    let directory = layout
        .dns_generations()
        .join((newest.unwrap_or(0) + 1).to_string());
    let now = serial_now(context)?;
    for view in View::ALL {
        host_directories::make(&directory.join(view.label()), 0o755)?;
    }
    host_directories::make(&directory, 0o755)?;
    for (key @ (view, zone), text) in &wanted.texts {
        let serial = match wanted.there.get(key) {
            Some((serial, true)) => *serial,
            Some((serial, false)) => serial.saturating_add(1).max(now),
            None => now,
        };
        serials
            .entry(zone.clone())
            .or_default()
            .insert(*view, serial);
        let path = directory.join(view.label()).join(files::name(zone));
        durable::write(&path, 0o644, text.with_serial(serial).as_bytes())?;
    }
    let path = directory.join("named.conf");
    let text = configuration(layout, &wanted.kept, &directory);
    durable::write(&path, 0o644, text.as_bytes())?;
    durable::sync_dir(&directory)?;
    durable::sync_dir(&layout.dns_generations())?;
    if let Err(failure) = check(context, &path) {
        fs::remove_dir_all(&directory).map_err(|e| io_failure("removing", &directory, &e))?;
        return Err(failure);
    }
    Ok(Generation {
        fresh: Some(directory),
        serials,
    })
}

/// Has BIND's own checker read a configuration and all of its zones.
fn check(context: &mut Context<'_>, path: &Path) -> Result<(), StepFailure> {
    let argv = [
        "named-checkconf".to_owned(),
        "-z".to_owned(),
        path.display().to_string(),
    ];
    let ended = context.link.run(&Program::new(argv))?;
    if ended.exit == Some(0) {
        return Ok(());
    }
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let is_well = |line: &str| line.contains(": loaded serial ") || line.trim().is_empty();
    let wrong: Vec<&str> = said.lines().filter(|line| !is_well(line)).take(5).collect();
    let message = format!("BIND would not take this: {}", wrong.join(" | "));
    Err(fail(FailureClass::Verification, message))
}

/// Has the server answer from a generation, and waits until it does; whether anything was different.
///
/// # Errors
/// When the server can't be had to: it does not start, or does not answer as the generation says.
pub fn go_live(context: &mut Context<'_>, generation: &Generation) -> Result<bool, StepFailure> {
    let layout = context.layout;
    if let Some(directory) = &generation.fresh {
        // Whatever number it has, the server was not told of it.
        durable::remove(&layout.dns_told())?;
        let name = directory.file_name().unwrap_or_default();
        let beside = layout.dns().join(".live");
        durable::remove(&beside)?;
        symlink(Path::new("generations").join(name), &beside)
            .and_then(|()| fs::rename(&beside, layout.dns_live()))
            .map_err(|e| io_failure("renaming", &beside, &e))?;
        durable::sync_dir(&layout.dns())?;
    }
    // Crash boundary: what the server was told to read is not what is live, and a repeat tells it.
    let drop_in = layout.dns_unit();
    if let Some(directory) = drop_in.parent() {
        host_directories::make(directory, 0o755)?;
    }
    let written = managed::derive(&drop_in, &drop_in_body(layout))?;
    let (state, enabled) = unit::settle(context, UNIT, written)?;
    let wanted = live(layout).unwrap_or_default().display().to_string() + "\n";
    let told = fs::read_to_string(layout.dns_told()).unwrap_or_default();
    let runs = state.active && unit::started_with(context, state, ASSIGNMENT);
    match (runs, told == wanted) {
        (true, true) => {}
        (true, false) => unit::start(context, "reload", UNIT)?,
        (false, _) => unit::start(context, "restart", UNIT)?,
    }
    await_serials(context, &generation.serials, None)?;
    durable::write(&layout.dns_told(), 0o644, wanted.as_bytes())?;
    remove_generations(layout, live(layout).as_deref())?;
    Ok(generation.fresh.is_some() || written || enabled || !runs || told != wanted)
}

fn drop_in_body(layout: &Layout) -> String {
    format!(
        "[Service]\n\
         Environment={ASSIGNMENT}\n\
         ExecStart=\n\
         ExecStart=/usr/sbin/named -f -c {}/named.conf $OPTIONS\n",
        layout.dns_live().display()
    )
}

/// Makes the server follow the pieces; whether anything was different.
///
/// # Errors
/// As [`stage`] and [`go_live`].
pub fn follow(context: &mut Context<'_>, kept: &Kept) -> Result<bool, StepFailure> {
    let generation = stage(context, kept)?;
    go_live(context, &generation)
}

/// Whether the server has read what the pieces come to, and runs.
///
/// # Errors
/// When that can't be told.
pub fn is_followed(context: &mut Context<'_>, kept: &Kept) -> Result<Option<Serials>, StepFailure> {
    let layout = context.layout;
    let wanted = want(layout, kept.clone())?;
    let state = unit::look(context, UNIT)?;
    let drop_in = managed::body(&layout.dns_unit())?;
    let told = fs::read_to_string(layout.dns_told()).unwrap_or_default();
    let is_told = live(layout).is_some_and(|live| format!("{}\n", live.display()) == told);
    let runs = state.active && state.enabled && unit::started_with(context, state, ASSIGNMENT);
    let has_keys = kept
        .keys
        .as_ref()
        .is_none_or(|name| layout.dns_keys().join(name).exists());
    if !(wanted.is_live && is_told && runs && has_keys && drop_in == Some(drop_in_body(layout))) {
        return Ok(None);
    }
    let mut serials = Serials::new();
    for ((view, zone), (serial, _)) in wanted.there {
        serials.entry(zone).or_default().insert(view, serial);
    }
    Ok(Some(serials))
}

/// Gives the server back to its host: it reads again what it did before, and of its zones nothing is left. The service, whose
/// mark shows all of this to be the tool's, is to go last.
///
/// # Errors
/// When something can't be removed, or the unit does not follow.
pub fn retire(context: &mut Context<'_>, before: Before) -> Result<(), StepFailure> {
    let layout = context.layout;
    let drop_in = layout.dns_unit();
    let removed = managed::remove_ours(&drop_in)?;
    if let Some(directory) = drop_in.parent() {
        remove_empty(directory)?;
    }
    // Crash boundary: a repeat finds that systemd has read what is gone, and that the unit was started with it.
    let mut state = unit::look(context, UNIT)?;
    if removed || state.stale {
        context.run(&Program::new(["systemctl", "daemon-reload"]))?;
        state = unit::look(context, UNIT)?;
    }
    if state.active && !before.active {
        context.run(&Program::new(["systemctl", "stop", UNIT]))?;
    } else if before.active && (!state.active || unit::started_with(context, state, ASSIGNMENT)) {
        unit::start(context, "restart", UNIT)?;
    }
    if state.enabled && !before.enabled {
        context.run(&Program::new(["systemctl", "--quiet", "disable", UNIT]))?;
    }
    durable::remove(&layout.dns_live())?;
    durable::remove(&layout.dns_told())?;
    let received = layout.dns_received();
    for name in managed::list(&received)? {
        if name.starts_with(RECEIVED) {
            durable::remove(&received.join(name))?;
        }
    }
    Ok(())
}

/// As [`retire`], where the service is gone and a drop-in of the tool's still has the server read what went with it.
///
/// # Errors
/// As [`retire`].
pub fn retire_orphan(context: &mut Context<'_>) -> Result<(), StepFailure> {
    let drop_in = managed::read(&context.layout.dns_unit())?;
    if matches!(drop_in, managed::Found::Ours { .. }) {
        // Nobody knows how it was; as its package has it, it runs.
        let before = Before {
            enabled: true,
            active: true,
        };
        retire(context, before)?;
    }
    Ok(())
}

/// Removes all generations but one, and what was cut while it was written.
fn remove_generations(layout: &Layout, kept: Option<&Path>) -> Result<(), StepFailure> {
    for path in generations(layout)? {
        if Some(path.as_path()) != kept {
            fs::remove_dir_all(&path).map_err(|e| io_failure("removing", &path, &e))?;
        }
    }
    Ok(())
}

/// Removes what was staged, once there is no service, and the directories that nothing is left in.
///
/// # Errors
/// When something can't be removed.
pub fn remove_rest(layout: &Layout) -> Result<(), StepFailure> {
    remove_generations(layout, None)?;
    for path in [
        layout.dns_generations(),
        layout.dns_keys(),
        layout.dns_amendments(),
        layout.dns(),
    ] {
        remove_empty(&path)?;
    }
    Ok(())
}
