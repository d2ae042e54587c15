//! Where the container is registered: configuration management, agents, subscriptions.

use super::{Group, Operation};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "configuration-management",
        group: Group::Enrolment,
        what: "remove keys and ids of Salt, Puppet and Chef",
        run: |scrub| {
            scrub.clear("etc/salt/pki")?;
            scrub.remove_all(&[
                "etc/salt/minion_id",
                "etc/salt/grains",
                "var/cache/salt",
                "etc/puppet/ssl",
                "etc/puppetlabs/puppet/ssl",
                "var/lib/puppet/ssl",
                "var/lib/puppet/state",
                "opt/puppetlabs/puppet/cache",
                "etc/chef/client.pem",
                "etc/chef/validation.pem",
            ])
        },
    },
    Operation {
        name: "cloud-init",
        group: Group::Enrolment,
        what: "remove what cloud-init knows of its instance",
        run: |scrub| {
            scrub.remove_all(&[
                "var/lib/cloud/instance",
                "var/lib/cloud/instances",
                "var/lib/cloud/data",
                "var/lib/cloud/sem",
                "var/lib/waagent",
            ])
        },
    },
    Operation {
        name: "engines",
        group: Group::Enrolment,
        what: "remove ids of snapd and Docker",
        run: |scrub| {
            scrub.clear("var/lib/snapd/device")?;
            scrub.remove_all(&["etc/docker/key.json", "var/lib/docker/engine-id"])
        },
    },
    Operation {
        name: "subscriptions",
        group: Group::Enrolment,
        what: "remove registrations of Ubuntu Pro, Landscape and Red Hat",
        run: |scrub| {
            scrub.clear("etc/pki/consumer")?;
            scrub.clear("etc/pki/entitlement")?;
            scrub.clear("var/lib/rhsm")?;
            scrub.remove_all(&[
                "var/lib/ubuntu-advantage/private",
                "var/lib/ubuntu-advantage/machine-access.json",
                "var/lib/landscape/client",
                "etc/sysconfig/rhn/systemid",
            ])
        },
    },
    Operation {
        name: "agents",
        group: Group::Enrolment,
        what: "remove ids and keys of monitoring and overlay-network agents",
        run: |scrub| {
            scrub.remove_in("var/lib/zerotier-one", |name| {
                name.starts_with(b"identity.")
            })?;
            scrub.remove_all(&[
                "var/lib/tailscale",
                "var/lib/netdata/registry/netdata.public.unique.id",
                "var/lib/netdata/cloud.d",
                "var/ossec/etc/client.keys",
                "etc/zabbix/zabbix_agentd.psk",
            ])
        },
    },
];
