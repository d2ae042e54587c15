//! The inventory's secrets, read where a command acts.
//!
//! One that can't be read stops only who needs it. What is read is taken out of all that is shown from then on.

use std::sync::Arc;

use super::super::{Error, Loaded};
use crate::causes;
use crate::cloud::inventory::Inventory;
use crate::secrets::{self, Declared};

/// The secrets of an inventory that is going to be recorded.
///
/// # Errors
/// When its text shows one.
pub(in crate::cli) fn declared(loaded: &Loaded) -> Result<Arc<Declared>, Error> {
    let declared = declared_by(&loaded.inventory);
    let mut lines = (1..).zip(loaded.text.lines());
    let shown = lines.find_map(|(line, text)| {
        let name = declared.mask().find(text.as_bytes())?;
        Some((line, name.clone()))
    });
    match shown {
        Some((line, name)) => Err(Error::Exposed {
            path: loaded.path.clone(),
            line,
            name,
        }),
        None => Ok(declared),
    }
}

/// The secrets of an inventory.
pub(in crate::cli) fn declared_by(inventory: &Inventory) -> Arc<Declared> {
    let declared = Declared::read(inventory, |name| std::env::var_os(name));
    let declared = Arc::new(declared);
    secrets::watch_over(&declared);
    for error in declared.unread() {
        tracing::info!(
            "{}; it is not taken out of what is printed",
            causes::in_line(&error)
        );
    }
    declared
}
