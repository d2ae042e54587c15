//! Every operation that there is, as the real planner plans it: every kind of step is in one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use tallybook::cloud::inventory::Inventory;
use tallybook::cloud::{self};
use tallybook::plan::container::{self, Known, Place};
use tallybook::plan::{dns, host, template};
use tallybook::secrets::Declared;
use tallybook_events::allocation::{Allocation, Forward, Protocol};
use tallybook_events::fact::{Backing, Origin};
use tallybook_events::ids::{Generation, Hash, OperationId, Seq};
use tallybook_events::intent::{Intent, Source};
use tallybook_events::name::{ContainerName, HostName, TemplateName};
use tallybook_events::step::PlannedStep;
use tallybook_events::subject::Subject;
use tallybook_replay::state::{self, State, TemplateGeneration};

/// The hosts.
pub(crate) const HOSTS: [&str; 3] = ["cn1", "cn2", "cn3"];

const CLOUD: &str = r#"
[network]
subnet = "10.5.0.0/24"
[hosts.cn1]
address = "192.0.2.1"
[hosts.cn2]
address = "192.0.2.2"
[hosts.cn3]
address = "192.0.2.3"
[secrets.token]
file = "SECRET"
[dns]
servers = ["cn1", "cn2"]
key = "token"
[zones."example.net"]
nameservers = ["ns.example.edu"]
[zones."example.org"]
servers = ["cn2", "cn1"]
nameservers = ["ns.example.edu"]
[containers.shop]
host = "cn1"
provision = [
    { run = ["touch", "/made"], creates = "/made" },
    { run = ["true"] },
    { script = "touch /done", creates = "/done", secrets = ["token"] },
    { script = "true", secrets = ["token"] },
]
[containers.web]
host = "cn1"
[containers.db]
host = "cn2"
[templates.base]
"#;

/// One operation.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) id: OperationId,
    pub(crate) intent: Intent,
    pub(crate) claims: Vec<Subject>,
    pub(crate) steps: Vec<PlannedStep>,
}

/// A cloud in which each of them can be asked for.
pub(crate) struct Cloud {
    inventory: Inventory,
    state: State,
    pub(crate) secrets: Arc<Declared>,
}

/// What to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Install,
    Prepare,
    Dns,
    CreateFromScratch,
    CreateFromTemplate,
    CreateFromContainer,
    Start,
    Stop,
    Restart,
    Destroy,
    CopyBeside,
    CopyAway,
    Snapshot,
    Sync,
}

/// Each of them.
pub(crate) const ALL: [Asked; 14] = [
    Asked::Install,
    Asked::Prepare,
    Asked::Dns,
    Asked::CreateFromScratch,
    Asked::CreateFromTemplate,
    Asked::CreateFromContainer,
    Asked::Start,
    Asked::Stop,
    Asked::Restart,
    Asked::Destroy,
    Asked::CopyBeside,
    Asked::CopyAway,
    Asked::Snapshot,
    Asked::Sync,
];

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

fn allocation(last: u8) -> Allocation {
    Allocation {
        address: [10, 5, 0, last].into(),
        mac: name(&format!("00:16:3e:00:00:{last:02x}")),
        forwards: vec![Forward {
            name: "ssh".to_owned(),
            protocol: Protocol::Tcp,
            host_port: 40000 + u16::from(last),
            container_port: 22,
        }],
    }
}

fn there() -> state::Container {
    state::Container {
        origin: Origin::Container {
            host: name("cn1"),
            container: name("web"),
        },
        backing: Backing::Dir,
        running: true,
        address: None,
        machine_id: String::new(),
        host_keys: Vec::new(),
        keys: Vec::new(),
        created: Seq(1),
        created_unix_us: 0,
        last: Seq(1),
    }
}

impl Cloud {
    /// With its secret in a file of this directory.
    pub(crate) fn new(place: &Path) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let secret = place.join("token");
        std::fs::write(&secret, "a secret of the cloud").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = CLOUD.replace("SECRET", secret.to_str().unwrap());
        let inventory = cloud::parse("cloud.toml", &text).unwrap();
        let host = state::Host {
            installed: true,
            prepared: Some(("br0".to_owned(), "10.5.0.1/24".to_owned())),
            ..state::Host::default()
        };
        let hosts = HOSTS.map(|host_name| (name(host_name), host.clone()));
        let given = [("cn1", "shop", 2), ("cn1", "web", 3), ("cn2", "db", 4)];
        let given =
            given.map(|(host, container, last)| ((name(host), name(container)), allocation(last)));
        let generation = TemplateGeneration {
            manifest: Hash([7; 32]),
            entries: 1,
            size_bytes: 1,
            hosts: BTreeSet::from([name("cn1")]),
            differing: BTreeMap::new(),
            created: Seq(1),
            created_unix_us: 0,
        };
        let state = State {
            hosts: hosts.into(),
            containers: [((name("cn1"), name("web")), there())].into(),
            templates: [((name("base"), Generation(1)), generation)].into(),
            allocations: given.into(),
            ..State::default()
        };
        let secrets = Arc::new(Declared::read(&inventory, |_| None));
        Cloud {
            inventory,
            state,
            secrets,
        }
    }

    /// The operation, and what it claims.
    pub(crate) fn wish(&self, asked: Asked, id: OperationId) -> Wish {
        let known = Known {
            inventory: &self.inventory,
            state: &self.state,
        };
        let (cn1, cn2): (HostName, HostName) = (name("cn1"), name("cn2"));
        let hosts: Vec<HostName> = HOSTS.iter().map(|host| name(host)).collect();
        let (shop, web, db): (ContainerName, ContainerName, ContainerName) =
            (name("shop"), name("web"), name("db"));
        let base: TemplateName = name("base");
        let place = |host, container| Place { host, container };
        let spec = |container: &str| &self.inventory.containers[&name::<ContainerName>(container)];
        let (shop_there, web_there) = (place(&cn1, &shop), place(&cn1, &web));
        let of_web = vec![web_there.subject()];
        let (steps, intent, claims) = match asked {
            Asked::Install => (
                host::install(&self.inventory, &hosts),
                Intent::HostInstall {
                    hosts: hosts.clone(),
                },
                hosts.iter().cloned().map(Subject::Host).collect(),
            ),
            Asked::Prepare => (
                host::prepare(&self.inventory, &self.state, &hosts),
                Intent::HostPrepare {
                    hosts: hosts.clone(),
                },
                hosts.iter().cloned().map(Subject::Host).collect(),
            ),
            Asked::Dns => (
                dns::apply(&self.inventory, &self.state),
                Intent::DnsApply {
                    hosts: vec![cn1.clone(), cn2.clone()],
                },
                [&cn1, &cn2].map(|host| Subject::Host(host.clone())).into(),
            ),
            Asked::CreateFromScratch | Asked::CreateFromTemplate | Asked::CreateFromContainer => {
                let source = match asked {
                    Asked::CreateFromScratch => Source::Scratch,
                    Asked::CreateFromTemplate => Source::Template {
                        template: base.clone(),
                        generation: None,
                    },
                    _ => Source::Container {
                        container: web.clone(),
                    },
                };
                (
                    container::create(known, shop_there, spec("shop"), &source, None),
                    Intent::ContainerCreate {
                        container: shop.clone(),
                        host: cn1.clone(),
                        source,
                        backing: None,
                    },
                    vec![shop_there.subject()],
                )
            }
            Asked::Start => (
                container::start(known, web_there),
                Intent::ContainerStart {
                    container: web.clone(),
                    host: cn1.clone(),
                },
                of_web,
            ),
            Asked::Stop => (
                container::stop(known, web_there),
                Intent::ContainerStop {
                    container: web.clone(),
                    host: cn1.clone(),
                },
                of_web,
            ),
            Asked::Restart => (
                container::restart(known, web_there),
                Intent::ContainerRestart {
                    container: web.clone(),
                    host: cn1.clone(),
                },
                of_web,
            ),
            Asked::Destroy => (
                container::destroy(known, web_there),
                Intent::ContainerDestroy {
                    container: web.clone(),
                    host: cn1.clone(),
                },
                of_web,
            ),
            Asked::CopyBeside => (
                container::copy(known, id, web_there, shop_there, spec("shop")),
                Intent::ContainerCopy {
                    container: web.clone(),
                    from: cn1.clone(),
                    to: cn1.clone(),
                    copy: shop.clone(),
                },
                vec![shop_there.subject()],
            ),
            Asked::CopyAway => (
                container::copy(known, id, web_there, place(&cn2, &db), spec("db")),
                Intent::ContainerCopy {
                    container: web.clone(),
                    from: cn1.clone(),
                    to: cn2.clone(),
                    copy: db.clone(),
                },
                vec![place(&cn2, &db).subject()],
            ),
            Asked::Snapshot => (
                template::snapshot(
                    known,
                    &base,
                    Generation(2),
                    web_there,
                    &template::Exceptions::default(),
                ),
                Intent::TemplateSnapshot {
                    template: base.clone(),
                    container: web.clone(),
                    host: cn1.clone(),
                    generation: Generation(2),
                },
                vec![Subject::Template(base.clone())],
            ),
            Asked::Sync => (
                template::sync(known, &base, Generation(1), &cn1, &hosts[1..]),
                Intent::TemplateSync {
                    template: base.clone(),
                    generation: Generation(1),
                    from: cn1.clone(),
                    to: hosts[1..].to_vec(),
                },
                vec![Subject::Template(base.clone())],
            ),
        };
        Wish {
            id,
            intent,
            claims,
            steps: steps.unwrap(),
        }
    }
}

#[test]
fn every_kind_of_step_is_in_an_operation_of_the_matrix() {
    let place = tempfile::tempdir().unwrap();
    let cloud = Cloud::new(place.path());
    let id = OperationId::from_bytes([1; 16]);
    let steps = ALL.iter().flat_map(|asked| cloud.wish(*asked, id).steps);
    let planned: BTreeSet<String> = steps.map(|step| step.kind).collect();
    let kinds = tallybook_agent::steps::TABLE.iter();
    let kinds: BTreeSet<String> = kinds.map(|row| row.kind.to_owned()).collect();
    assert_eq!(planned, kinds, "a step without a row");
}
