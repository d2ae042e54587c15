//! The peer that is a database: SQLite with write-ahead log, full sync, and an index for each thing that ours finds events by.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use tallybook_events::record::Record;
use tallybook_events::subject::Subject;

use crate::Failure;

const SCHEMA: &str = "
CREATE TABLE events(seq INTEGER PRIMARY KEY, subject TEXT NOT NULL, host TEXT, container TEXT, operation BLOB, kind TEXT NOT NULL,
    header BLOB NOT NULL, payload BLOB NOT NULL);
CREATE INDEX by_subject ON events(subject);
CREATE INDEX by_host ON events(host) WHERE host IS NOT NULL;
CREATE INDEX by_container ON events(container) WHERE container IS NOT NULL;
CREATE INDEX by_operation ON events(operation) WHERE operation IS NOT NULL;
CREATE INDEX by_kind ON events(kind);
CREATE TABLE containers(host TEXT, container TEXT, running INTEGER, address TEXT, origin TEXT, backing TEXT, created INTEGER,
    PRIMARY KEY(host, container)) WITHOUT ROWID;
CREATE TABLE operations(id BLOB PRIMARY KEY, intent TEXT, status TEXT, first INTEGER, last INTEGER, events INTEGER, actor TEXT)
    WITHOUT ROWID;
";

const INSERT: &str = "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// A row as the table has it. Made before the clock runs: what is measured is what SQLite does with it.
pub(crate) struct Row {
    seq: i64,
    subject: String,
    host: Option<String>,
    container: Option<String>,
    operation: Option<Vec<u8>>,
    kind: String,
    header: Vec<u8>,
    payload: Vec<u8>,
}

impl Row {
    /// Of a record: its frame's bytes in two columns.
    pub(crate) fn of(record: &Record) -> Self {
        let mut frame = Vec::new();
        record.write_frame(&mut frame);
        let payload = frame.split_off(frame.len() - record.payload.len());
        let header = &record.header;
        let (host, container) = match &header.subject {
            Subject::Cloud | Subject::Template(_) => (None, None),
            Subject::Host(host) => (Some(host.to_string()), None),
            Subject::Container(host, container) => {
                (Some(host.to_string()), Some(container.to_string()))
            }
        };
        Row {
            seq: header.seq.0 as i64,
            subject: header.subject.to_string(),
            host,
            container,
            operation: header.operation.map(|id| id.as_bytes().to_vec()),
            kind: header.kind.to_string(),
            header: frame,
            payload,
        }
    }
}

/// A database of events.
pub(crate) struct Sqlite {
    connection: Connection,
    path: PathBuf,
}

impl Sqlite {
    /// Makes one. `is_durable` is how it is compared with appends; without, it is only filled fast.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub(crate) fn create(path: &Path, is_durable: bool) -> Result<Self, Failure> {
        let _absent = std::fs::remove_file(path);
        let connection = Connection::open(path)?;
        let mode: String =
            connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(format!("SQLite gives journal mode {mode}, not wal").into());
        }
        connection.pragma_update(None, "synchronous", if is_durable { "FULL" } else { "OFF" })?;
        connection.pragma_update(None, "cache_size", -65_536)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Sqlite {
            connection,
            path: path.to_owned(),
        })
    }

    /// One transaction.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub(crate) fn append(&mut self, rows: &[Row]) -> Result<(), Failure> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(INSERT)?;
            for row in rows {
                insert.execute(params![
                    row.seq,
                    row.subject,
                    row.host,
                    row.container,
                    row.operation,
                    row.kind,
                    row.header,
                    row.payload
                ])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Puts in what is folded.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub(crate) fn put_state(
        &mut self,
        state: &tallybook_replay::state::State,
    ) -> Result<(), Failure> {
        let transaction = self.connection.transaction()?;
        for ((host, container), known) in &state.containers {
            transaction.execute(
                "INSERT INTO containers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    host.as_str(),
                    container.as_str(),
                    known.running,
                    known.address,
                    format!("{:?}", known.origin),
                    known.backing.to_string(),
                    known.created_unix_us as i64
                ],
            )?;
        }
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO operations VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            for (id, known) in &state.operations {
                insert.execute(params![
                    id.as_bytes(),
                    known.intent.summary(),
                    known.status.label(),
                    known.first.0 as i64,
                    known.last.0 as i64,
                    known.events as i64,
                    known.actor.label()
                ])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Ends it, so that all is in the one file.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let Sqlite { connection, path } = self;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        connection.close().map_err(|(_, error)| error)?;
        std::fs::File::open(path)?.sync_all()?;
        Ok(())
    }
}
