//! Keys, passwords and what people typed, in every home and in the system's own places.

use std::os::unix::ffi::OsStrExt;

use super::{Group, Operation, Scrub};
use crate::tree::Error;

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "ssh-user-files",
        group: Group::Secrets,
        what: "remove users' SSH keys, known hosts and configuration",
        run: ssh_user_files,
    },
    Operation {
        name: "authorized-keys",
        group: Group::Secrets,
        what: "remove the keys that may log in",
        run: |scrub| {
            scrub.remove_in_homes(&[
                ".ssh/authorized_keys",
                ".ssh/authorized_keys2",
                ".ssh/authorized_keys~",
                ".ssh/authorized_keys.bak",
            ])
        },
    },
    Operation {
        name: "histories",
        group: Group::Secrets,
        what: "remove histories of shells, editors and database clients",
        run: histories,
    },
    Operation {
        name: "credentials",
        group: Group::Secrets,
        what: "remove users' stored credentials",
        run: |scrub| scrub.remove_in_homes(CREDENTIALS),
    },
    Operation {
        name: "user-caches",
        group: Group::Secrets,
        what: "remove users' caches",
        run: |scrub| scrub.remove_in_homes(&[".cache"]),
    },
    Operation {
        name: "keytabs",
        group: Group::Secrets,
        what: "remove Kerberos keytabs and the secrets of sssd and samba",
        run: |scrub| {
            scrub.remove_all(&[
                "etc/krb5.keytab",
                "var/lib/sss/secrets",
                "var/lib/samba/private/secrets.tdb",
            ])
        },
    },
    Operation {
        name: "acme-accounts",
        group: Group::Secrets,
        what: "remove accounts, keys and certificates of Let's Encrypt clients",
        run: |scrub| {
            scrub.clear("etc/letsencrypt/accounts")?;
            scrub.clear("etc/letsencrypt/archive")?;
            scrub.clear("etc/letsencrypt/live")?;
            scrub.clear("etc/letsencrypt/keys")?;
            scrub.clear("etc/letsencrypt/csr")?;
            scrub.clear("etc/letsencrypt/renewal")?;
            scrub.clear("var/lib/letsencrypt")?;
            scrub.remove_in_homes(&[".acme.sh", ".lego"])
        },
    },
    Operation {
        name: "wireguard",
        group: Group::Secrets,
        what: "remove WireGuard keys and tunnels",
        run: |scrub| scrub.clear("etc/wireguard"),
    },
    Operation {
        name: "account-backups",
        group: Group::Secrets,
        what: "remove backups of the account files, which keep old password hashes",
        run: account_backups,
    },
    Operation {
        name: "debconf-passwords",
        group: Group::Secrets,
        what: "empty the passwords that packages asked for",
        run: |scrub| {
            scrub.empty("var/cache/debconf/passwords.dat")?;
            scrub.remove("var/cache/debconf/passwords.dat-old")
        },
    },
    Operation {
        name: "root-password",
        group: Group::Secrets,
        what: "lock root's password",
        run: |scrub| scrub.edit("etc/shadow", |text| locked(text, |name| name == b"root")),
    },
    Operation {
        name: "user-passwords",
        group: Group::Secrets,
        what: "lock the passwords of all other accounts and groups",
        run: |scrub| {
            scrub.edit("etc/shadow", |text| locked(text, |name| name != b"root"))?;
            scrub.edit("etc/gshadow", |text| locked(text, |_| true))
        },
    },
];

const CREDENTIALS: &[&str] = &[
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".terraform.d",
    ".password-store",
    ".netrc",
    ".pgpass",
    ".my.cnf",
    ".mylogin.cnf",
    ".git-credentials",
    ".npmrc",
    ".pypirc",
    ".s3cfg",
    ".vault-token",
    ".smbcredentials",
    ".Xauthority",
    ".ICEauthority",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".composer/auth.json",
    ".gem/credentials",
    ".config/gcloud",
    ".config/gh",
    ".config/git/credentials",
    ".config/hub",
    ".config/rclone",
    ".config/containers/auth.json",
    ".config/composer/auth.json",
    ".local/share/keyrings",
];

fn ssh_user_files(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    for home in scrub.homes {
        scrub.remove_in(home.join(".ssh"), |name| {
            !name.starts_with(b"authorized_keys")
        })?;
    }
    Ok(())
}

fn histories(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    for home in scrub.homes {
        scrub.remove_in(home, |name| {
            let is_history = name.ends_with(b"history") || name.ends_with(b"_hist");
            (name.starts_with(b".") && is_history)
                || matches!(
                    name,
                    b".histfile"
                        | b".lesshst"
                        | b".viminfo"
                        | b".dbshell"
                        | b".wget-hsts"
                        | b".recently-used"
                )
        })?;
    }
    scrub.remove_in_homes(&[
        ".nano/search_history",
        ".local/share/nano",
        ".local/share/fish/fish_history",
        ".local/share/mc/history",
        ".local/share/recently-used.xbel",
        ".local/state/lesshst",
        ".local/state/nvim",
        ".config/psql/history",
    ])
}

fn account_backups(scrub: &mut Scrub<'_>) -> Result<(), Error> {
    scrub.remove_all(&[
        "etc/passwd-",
        "etc/shadow-",
        "etc/group-",
        "etc/gshadow-",
        "etc/subuid-",
        "etc/subgid-",
        "etc/shadow.org",
        "etc/passwd.org",
    ])?;
    let (dir, names) = scrub.list("var/backups")?;
    for name in names {
        let is_of_accounts = [b"passwd.".as_slice(), b"shadow.", b"group.", b"gshadow."]
            .iter()
            .any(|start| name.as_bytes().starts_with(start));
        if is_of_accounts {
            scrub.remove(dir.join(name))?;
        }
    }
    Ok(())
}

/// `shadow` or `gshadow` with the password of each account that `which` names replaced by `*`. What is locked
/// already keeps its form; an empty password, which lets anyone in, is locked too.
pub(super) fn locked(text: &[u8], which: fn(&[u8]) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (name, password, rest) = (fields.next(), fields.next(), fields.next());
        let (Some(name), Some(password), Some(rest)) = (name, password, rest) else {
            out.extend_from_slice(line);
            continue;
        };
        let is_locked = matches!(password, b"*" | b"!" | b"!!" | b"!*" | b"*!");
        let replaced: &[u8] = if is_locked || !which(name) {
            password
        } else {
            b"*"
        };
        out.extend_from_slice(&[name, b":", replaced, b":", rest].concat());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_locked_and_locked_ones_keep_their_form() {
        let text = b"root:$y$abc:1:0:\nann:!$6$old:2::\nbin:*:3:\nsshd:!:4:\nopen::5:\nbroken\n";
        assert_eq!(
            locked(text, |_| true),
            b"root:*:1:0:\nann:*:2::\nbin:*:3:\nsshd:!:4:\nopen:*:5:\nbroken\n"
        );
        assert_eq!(
            locked(text, |name| name == b"root"),
            b"root:*:1:0:\nann:!$6$old:2::\nbin:*:3:\nsshd:!:4:\nopen::5:\nbroken\n"
        );
    }
}
