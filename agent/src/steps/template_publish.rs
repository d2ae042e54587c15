//! `template.publish`: a staged tree becomes a generation of a template, under the hash of its manifest.
//!
//! It never replaces a generation, and takes back only one that it made itself and that nothing uses.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tallybook_events::fact::Fact;
use tallybook_events::ids::{Generation, Hash, StepIndex};
use tallybook_events::name::{ContainerName, TemplateName};
use tallybook_events::step::{FailureClass, Seen, StepFailure};

use crate::step::{Context, Done, Step, fail, failure};
use crate::template::staged::{self, Staged};
use crate::tree::Root;
use crate::tree::manifest::{Difference, LEN_MAX, Manifest, build, differences};
use crate::{durable, guest, mark, staging};

/// Publishes a staged tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplatePublish {
    /// The template.
    pub template: TemplateName,
    /// The generation it becomes.
    pub generation: Generation,
    /// The step of this operation that staged it.
    pub staged: StepIndex,
    /// What its manifest must hash to, when that is known before.
    pub expect: Option<Hash>,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The hash of its manifest.
    pub manifest: Hash,
    /// Number of entries.
    pub entries: u64,
    /// Content in bytes.
    pub size_bytes: u64,
}

/// Where those who use a generation leave their marks.
const USERS: &str = "users";
/// All that a generation consists of.
const PUBLISHED: [&str; 4] = [staged::ROOTFS, staged::CONFIG, staged::MANIFEST, mark::NAME];

impl TemplatePublish {
    fn place(&self, context: &Context<'_>) -> PathBuf {
        context.layout.generation(&self.template, self.generation)
    }

    fn done(&self, context: &Context<'_>, changed: bool, output: Published) -> Done<Published> {
        let fact = present(context, &self.template, self.generation, &output);
        Done {
            changed,
            output,
            facts: vec![fact],
        }
    }

    /// The manifest that the tree is published with, its content hashed. It is the one that came with the tree, where
    /// that is expected and one did: this host's file system may keep other holes than the one that it was made on, and
    /// the tree is the same all the same.
    fn manifest(&self, context: &mut Context<'_>, tree: &Staged) -> Result<Manifest, StepFailure> {
        let link = &mut *context.link;
        let manifest = build(tree.root.as_fd(), &mut |hashed| {
            link.progress("hashing the tree", hashed.done, hashed.total);
            if link.stop_requested() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| error.failure(tree.root.label()))?;
        let Some(expected) = self.expect else {
            return Ok(manifest);
        };
        let id = manifest.id();
        if id == expected {
            return Ok(manifest);
        }
        let came = read_manifest(&tree.dir)?.filter(|came| came.id() == expected);
        match came {
            Some(came) if !differences(&came, &manifest).iter().any(Difference::counts) => Ok(came),
            Some(_) | None => Err(StepFailure {
                hint: Some("roll the operation back and run it again".to_owned()),
                ..fail(
                    FailureClass::Verification,
                    format!(
                        "the tree staged for template {} generation {} hashes to {id}, not to {expected}",
                        self.template, self.generation
                    ),
                )
            }),
        }
    }

    /// Removes what only the operation needed, from a directory that is about to be published.
    fn tidy(dir: &Path) -> Result<(), StepFailure> {
        let root = Root::open(dir).map_err(|error| error.failure(dir))?;
        let names = root
            .list(Path::new(""))
            .map_err(|error| error.failure(dir))?;
        for name in names {
            if !PUBLISHED.iter().any(|kept| name == *kept) {
                root.remove_dir_all(Path::new(&name))
                    .map_err(|error| error.failure(dir))?;
            }
        }
        Ok(())
    }
}

impl Step for TemplatePublish {
    const KIND: &'static str = "template.publish";
    type Output = Published;

    fn summary(&self) -> String {
        format!(
            "publish template {} generation {}",
            self.template, self.generation
        )
    }

    fn probe(&self, context: &mut Context<'_>) -> Result<Seen, StepFailure> {
        let place = self.place(context);
        if !place.exists() {
            return Ok(Seen::Absent);
        }
        if mark::read(&place)? != Some(context.origin) {
            return Ok(Seen::Conflict {
                what: format!("{} is there and was not made by this step", place.display()),
            });
        }
        let output = described(&place)?;
        match self.expect {
            Some(expected) if expected != output.manifest => Ok(Seen::Conflict {
                what: format!("{} holds manifest {}", place.display(), output.manifest),
            }),
            Some(_) | None => self.done(context, false, output).seen(),
        }
    }

    fn forward(&self, context: &mut Context<'_>) -> Result<Done<Published>, StepFailure> {
        let place = self.place(context);
        if place.exists() {
            if mark::read(&place)? != Some(context.origin) {
                return Err(StepFailure {
                    hint: Some("choose the next generation".to_owned()),
                    ..fail(
                        FailureClass::Exists,
                        format!(
                            "template {} has a generation {} on {} that this step did not make",
                            self.template, self.generation, context.host
                        ),
                    )
                });
            }
            let output = described(&place)?;
            staging::prune(&context.layout.staging(context.origin.0, self.staged))?;
            return Ok(self.done(context, false, output));
        }
        let tree = Staged::open(context, self.staged)?;
        let manifest = self.manifest(context, &tree)?;
        let output = Published {
            manifest: manifest.id(),
            entries: manifest.entries().len() as u64,
            size_bytes: manifest.content_len(),
        };
        staged::write(&tree.dir, staged::MANIFEST, &manifest.encode())?;
        mark::write(&tree.dir, context.origin)?;
        Self::tidy(&tree.dir)?;
        durable::create_dirs(&context.layout.template(&self.template))?;
        durable::sync_file_system(&tree.dir)?;
        // Crash boundary: with this name the generation is whole, verified and durable; before, it is not there.
        durable::rename_new(&tree.dir, &place)?;
        staging::prune(&tree.dir)?;
        Ok(self.done(context, true, output))
    }

    fn in_the_way(&self, context: &mut Context<'_>) -> Result<Vec<PathBuf>, StepFailure> {
        let place = self.place(context);
        if place.symlink_metadata().is_err() {
            return Ok(Vec::new());
        }
        match mark::read(&place)? {
            Some(maker) if maker == context.origin => Ok(Vec::new()),
            Some(maker) => Err(mark::refused(&place, maker)),
            None => {
                refuse_used(&place, &self.template, self.generation)?;
                Ok(vec![place])
            }
        }
    }

    fn adopt(&self, context: &mut Context<'_>) -> Result<Done<Published>, StepFailure> {
        let place = self.place(context);
        let refused = |why: String| Err(fail(FailureClass::Exists, why));
        let Some(expected) = self.expect else {
            return refused("a snapshot can't be known to be what somebody else made".to_owned());
        };
        let output = described(&place)?;
        let root = Root::open(&place.join(guest::ROOTFS)).map_err(|e| e.failure(&place))?;
        let link = &mut *context.link;
        let manifest = build(root.as_fd(), &mut |hashed| {
            link.progress("hashing the tree", hashed.done, hashed.total);
            ControlFlow::Continue(())
        })
        .map_err(|error| error.failure(&place))?;
        if output.manifest != expected || manifest.id() != expected {
            return refused(format!(
                "{} holds {}, and not {expected}",
                place.display(),
                manifest.id()
            ));
        }
        Ok(self.done(context, false, output))
    }

    fn undo(
        &self,
        context: &mut Context<'_>,
        _output: Option<Published>,
    ) -> Result<Done<()>, StepFailure> {
        let place = self.place(context);
        let gone = || Fact::TemplateAbsent {
            host: context.host.clone(),
            template: self.template.clone(),
            generation: self.generation,
        };
        let doomed = doomed(&place);
        let mut changed = false;
        if place.exists() {
            if mark::read(&place)? != Some(context.origin) {
                return Ok(Done {
                    changed: false,
                    output: (),
                    facts: Vec::new(),
                });
            }
            refuse_used(&place, &self.template, self.generation)?;
            // Crash boundary: away from its name first, so that a half-removed tree is no generation.
            staging::remove_dir(&doomed)?;
            durable::rename_new(&place, &doomed)?;
            changed = true;
        }
        let facts = vec![gone()];
        changed |= staging::remove_dir(&doomed)?;
        Ok(Done {
            changed,
            output: (),
            facts,
        })
    }
}

/// Where a generation is while it is removed. Only generations that a step may remove get there.
fn doomed(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".removing-{name}"))
}

/// The fact that a generation is there.
pub(super) fn present(
    context: &Context<'_>,
    template: &TemplateName,
    generation: Generation,
    output: &Published,
) -> Fact {
    Fact::TemplatePresent {
        host: context.host.clone(),
        template: template.clone(),
        generation,
        manifest: output.manifest,
        entries: output.entries,
        size_bytes: output.size_bytes,
    }
}

/// What a generation's manifest says of it.
///
/// # Errors
/// When there is none, or it can't be read.
pub(super) fn described(place: &Path) -> Result<Published, StepFailure> {
    let path = place.join(staged::MANIFEST);
    let manifest = read_manifest(place)?.ok_or_else(|| {
        fail(
            FailureClass::Missing,
            format!("{} is missing", path.display()),
        )
    })?;
    Ok(Published {
        manifest: manifest.id(),
        entries: manifest.entries().len() as u64,
        size_bytes: manifest.content_len(),
    })
}

/// The manifest beside a tree.
fn read_manifest(dir: &Path) -> Result<Option<Manifest>, StepFailure> {
    let root = Root::open(dir).map_err(|error| error.failure(dir))?;
    let len_max = usize::try_from(LEN_MAX).unwrap_or(usize::MAX);
    let bytes = root
        .read_optional(Path::new(staged::MANIFEST), len_max)
        .map_err(|error| error.failure(dir))?;
    let decoded = bytes.map(|bytes| Manifest::decode(&bytes)).transpose();
    decoded.map_err(|error| failure(FailureClass::Verification, &error))
}

/// Refuses to take away a generation that containers stand on.
pub(super) fn refuse_used(
    place: &Path,
    template: &TemplateName,
    generation: Generation,
) -> Result<(), StepFailure> {
    let root = Root::open(place).map_err(|error| error.failure(place))?;
    let listed = match root.list(Path::new(USERS)) {
        Err(error) if error.is_missing() => return Ok(()),
        other => other.map_err(|error| error.failure(place))?,
    };
    // A mark gets its name when it is whole. What a power cut left of one that was being written has a name that no
    // container can have, and is nobody's: its container lies on nothing yet.
    let names: Vec<String> = listed
        .iter()
        .filter_map(|name| ContainerName::new(name.to_str()?).ok())
        .map(|name| name.to_string())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(StepFailure {
        hint: Some(format!(
            "destroy these containers first: {}",
            names.join(", ")
        )),
        ..fail(
            FailureClass::Exists,
            format!(
                "template {template} generation {generation} is in use by {}",
                names.join(", ")
            ),
        )
    })
}
