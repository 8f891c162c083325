package kvstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/kvd-io/kvd/internal/kvstore/body"
	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/guard"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
	"github.com/kvd-io/kvd/internal/kvstore/timeline"
)

// A snapshot body is the whole state in one stream (package body), the same for every
// engine and every replica: equal states have equal bodies. So it leaves out what belongs to
// one replica, which is how far that has removed history, and what follows from it.
//
//   - Versions that no read at or above the compact revision needs are left out, whether
//     they were removed already or not.
//   - The change log begins at the compact revision, and is divided into records as if one
//     call of Apply had made all changes.
//   - What is not there needs no progress to be kept, and a restore counts the history.
//
// A backup leaves out the values of secrets, too, which leaves the state hash as it is.
//
// Each table is a section. The reader checks what can be checked before it lets anything
// pass for good: that each record decodes, that the hash, the counters, and the revisions
// fit, and that the change log says exactly what the versions say (bodyReader.changes).

// ErrBody is wrapped by all errors about a snapshot body that is damaged, forged, or
// something else.
var ErrBody = body.ErrDamaged

// sectionVersion is the version of every section.
const sectionVersion = 1

// bodySections are the sections in the order in which they are written and required. The
// versions come after what says which of them are needed, and the changes after the
// versions that they name.
var bodySections = []struct {
	table byte
	name  string
}{
	{layout.TableMeta, "meta"},
	{layout.TableSetting, "settings"},
	{layout.TableRecord, "records"},
	{layout.TableRights, "rights"},
	{layout.TableSecret, "secrets"},
	{layout.TableTime, "times"},
	{layout.TableVersion, "versions"},
	{layout.TableChange, "changes"},
	{layout.TableIdempotency, "idempotency"},
	{layout.TableLease, "leases"},
	{layout.TableLeaseKey, "lease_keys"},
	{layout.TableLock, "locks"},
	{layout.TableLeaseLock, "lease_locks"},
	{layout.TableTicket, "tickets"},
	{layout.TableCounts, "counts"},
}

// BodyInfo describes a verified body.
type BodyInfo struct {
	Position        Position
	Revision        uint64
	CompactRevision uint64
	Keys            uint64
	Records         uint64
	StateHash       uint64
	// Bytes is the size of the records before compression.
	Bytes uint64
	// Sections have a checksum each, by which bodies can be compared.
	Sections []body.Section
}

// WriteTo writes the view as a snapshot body for another replica, and returns its size.
func (v *View) WriteTo(w io.Writer) (int64, error) { return v.write(w, false) }

// WriteBackup is WriteTo for readers that must not learn the secrets.
func (v *View) WriteBackup(w io.Writer) (int64, error) { return v.write(w, true) }

func (v *View) write(w io.Writer, seal bool) (int64, error) {
	out, err := body.NewWriter(w)
	if err != nil {
		return 0, err
	}
	b := bodyWriter{view: v, out: out, seal: seal}
	for _, s := range bodySections {
		b.name = s.name
		if err := b.table(s.table); err != nil {
			return out.Written(), err
		}
		b.begun = false
	}
	m := &v.meta
	err = out.Finish(body.Trailer{
		Index: m.Position.Index, Term: m.Position.Term, Revision: m.Revision, CompactRevision: m.Compact, StateHash: m.Hash(),
	})
	return out.Written(), err
}

// bodyWriter writes the sections of a view.
type bodyWriter struct {
	view  *View
	out   *body.Writer
	name  string // of the section
	begun bool   // a section without records is left out
	seal  bool   // secrets are left out
}

// add adds a record to the section, under its key in the engine.
func (b *bodyWriter) add(key, value []byte) error {
	if !b.begun {
		b.begun = true
		if err := b.out.Section(b.name, sectionVersion); err != nil {
			return err
		}
	}
	return b.out.Add(key[1:], value)
}

// table writes the section of a table.
func (b *bodyWriter) table(table byte) error {
	it, err := b.view.snapshot.Iter([]byte{table}, []byte{table + 1})
	if err != nil {
		return err
	}
	defer it.Close()
	add, end := b.add, func() error { return nil }
	switch table {
	case layout.TableMeta:
		add = b.addMeta
	case layout.TableSecret:
		if b.seal {
			add = func(key, value []byte) error { return b.add(key, guard.Sealed(value)) }
		}
	case layout.TableTime:
		t := timeNormalizer{bodyWriter: b}
		add, end = t.add, t.end
	case layout.TableVersion:
		add = (&versionNormalizer{bodyWriter: b}).add
	case layout.TableChange:
		c := changeNormalizer{bodyWriter: b}
		c.log.Set = c.set
		add, end = c.add, c.end
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := add(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	return end()
}

// addMeta leaves out the size of the history.
func (b *bodyWriter) addMeta(key, value []byte) error {
	m, err := layout.DecodeMeta(value)
	if err != nil {
		return err
	}
	m.HistoryBytes, m.HistoryVersions = 0, 0
	return b.add(key, layout.AppendMeta(nil, &m))
}

// timeNormalizer leaves out the samples of replicated time that Maintain would drop.
type timeNormalizer struct {
	*bodyWriter
	key, value []byte // the sample before, or nil
}

func (t *timeNormalizer) add(key, value []byte) error {
	if t.key != nil && binary.BigEndian.Uint64(key[1:]) > t.view.meta.Compact {
		if err := t.end(); err != nil {
			return err
		}
	}
	t.key, t.value = bytes.Clone(key), bytes.Clone(value)
	return nil
}

func (t *timeNormalizer) end() error {
	if t.key == nil {
		return nil
	}
	return t.bodyWriter.add(t.key, t.value)
}

// versionNormalizer leaves out the versions that Maintain would remove.
type versionNormalizer struct {
	*bodyWriter
	prefix []byte // of the last key
	old    bool   // a version of it from before the compact revision, or at it, was seen
}

func (n *versionNormalizer) add(key, value []byte) error {
	prefix, mod, err := layout.SplitVersionKey(key)
	if err != nil {
		return err
	}
	if !bytes.Equal(prefix, n.prefix) {
		n.prefix, n.old = append(n.prefix[:0], prefix...), false
	}
	compact := n.view.meta.Compact
	deleted := len(value) > 0 && value[0]&layout.VersionDeleted != 0
	if n.old || mod < compact && deleted {
		n.old = true
		return nil
	}
	n.old = mod <= compact
	return n.bodyWriter.add(key, value)
}

// changeNormalizer divides the change log anew, from the compact revision on.
type changeNormalizer struct {
	*bodyWriter
	log changelog.Logger
	err error
}

func (n *changeNormalizer) set(revision uint64, part uint32, value []byte) {
	if n.err == nil {
		n.err = n.bodyWriter.add(layout.ChangeKey(nil, revision, part), value)
	}
}

func (n *changeNormalizer) end() error {
	n.log.Flush()
	return n.err
}

// add adds the changes of a record. It is at most changelog.MaxBytes, so the groups of its
// revisions fit into memory.
func (n *changeNormalizer) add(key, value []byte) error {
	at, err := layout.SplitChangeKey(key)
	if err != nil {
		return err
	}
	var group []changelog.Change
	r := changelog.Read(at.Revision, value)
	for r.Next() {
		c := r.Change
		c.Key = bytes.Clone(c.Key)
		if r.Revision == n.view.meta.Compact { // what it replaced is gone
			c.Previous, c.Stored = 0, 0
		}
		if group = append(group, c); r.Left > 0 {
			continue
		}
		if r.Revision >= n.view.meta.Compact {
			n.group(layout.Place{Revision: r.Revision, Part: at.Part}, group)
		}
		group = group[:0]
	}
	if r.Err != nil {
		return r.Err
	}
	return n.err
}

// group adds the changes of a revision, or a part of them, which stays one.
func (n *changeNormalizer) group(at layout.Place, group []changelog.Change) {
	size := 0
	for i := range group {
		size += group[i].MaxBytes()
	}
	changes := changelog.Revision{N: len(group), At: func(i int, c *changelog.Change) { *c = group[i] }}
	if at.Part == 0 && size < changelog.MaxBytes {
		n.log.Log(at.Revision, changes)
		return
	}
	n.log.LogPart(at.Revision, at.Part, changes)
}

// readBody reads a body, checks everything that can be checked, and passes each
// record to fn, under its key in the engine. What fn got may be used only if readBody
// returns without an error.
func readBody(r io.Reader, fn func(key, value []byte) error) (BodyInfo, error) {
	b := bodyReader{fn: fn, section: -1, scan: statehash.Scan{RowBytes: rowBytes}}
	t, sections, err := body.Read(r, b.begin, b.record)
	if err != nil {
		return BodyInfo{}, err
	}
	if err := b.finish(&t); err != nil {
		return BodyInfo{}, err
	}
	info := BodyInfo{
		Records: t.Records, Position: Position{Index: t.Index, Term: t.Term}, Revision: t.Revision,
		CompactRevision: t.CompactRevision, StateHash: t.StateHash, Keys: b.scan.Keys, Sections: sections,
	}
	for i := range sections {
		info.Bytes += sections[i].Bytes
	}
	return info, nil
}

type bodyReader struct {
	fn          func(key, value []byte) error
	section     int // in bodySections
	key         []byte
	scan        statehash.Scan
	hasSettings bool
	meta        layout.Meta // that of the empty store until the section of meta was read
	hasMeta     bool
	newest      uint64 // the highest revision of any record
	versions    statehash.VersionScan
	// changes is the sum over hash(change) for the change log, and versions.changes for the
	// versions. They must be equal: compaction deletes what the log names.
	changes uint64
	logged  uint64 // the last revision of the change log
}

// begin takes the next section.
func (b *bodyReader) begin(name string, version byte) error {
	for i := b.section + 1; i < len(bodySections); i++ {
		if bodySections[i].name != name {
			continue
		}
		if version != sectionVersion {
			return &UnknownVersionError{What: "section " + name + " of a snapshot body", Version: version}
		}
		if b.section = i; !b.hasMeta && i > 0 {
			b.emptyMeta()
		}
		return nil
	}
	return fmt.Errorf("%w: section %.20q is unknown or not in its place", ErrBody, name)
}

// emptyMeta takes the meta record of an empty store, which has none.
func (b *bodyReader) emptyMeta() {
	b.meta = layout.Meta{Revision: layout.FirstRevision, Compact: layout.FirstRevision, Rest: emptyHash()}
	b.versions.Compact = layout.FirstRevision
}

// record checks a record and passes it on.
func (b *bodyReader) record(key, value []byte) error {
	table := bodySections[b.section].table
	b.key = append(append(b.key[:0], table), key...)
	if err := b.check(b.key, value); err != nil {
		return fmt.Errorf("%w: section %s: %w", ErrBody, bodySections[b.section].name, err)
	}
	if table == layout.TableMeta {
		return nil // it is written once the history is counted
	}
	return b.fn(b.key, value)
}

func (b *bodyReader) check(key, value []byte) error {
	if err := b.decode(key, value); err != nil {
		return err
	}
	if err := b.noteRevision(key); err != nil {
		return err
	}
	return b.scan.Add(key, value)
}

// noteRevision checks and remembers the revision in a well-formed key.
func (b *bodyReader) noteRevision(key []byte) error {
	var revision uint64
	switch key[0] {
	case layout.TableVersion:
		revision = ^binary.BigEndian.Uint64(key[len(key)-layout.RevisionLen:])
	case layout.TableChange, layout.TableTime:
		revision = binary.BigEndian.Uint64(key[1:])
	default:
		return nil
	}
	if revision < layout.FirstRevision {
		return fmt.Errorf("%w: revision %d", layout.ErrMalformed, revision)
	}
	b.newest = max(b.newest, revision)
	return nil
}

// decode decodes the record as later reads of it would: after the restore it is too
// late to refuse it.
func (b *bodyReader) decode(key, value []byte) (err error) {
	wantLen := len(key)
	switch key[0] {
	case layout.TableMeta:
		wantLen = 1
		b.hasMeta = true
		b.meta, err = layout.DecodeMeta(value)
		b.versions.Compact = b.meta.Compact
	case layout.TableSetting:
		wantLen = 1
		b.hasSettings = true
		_, err = decodeSettings(value)
	case layout.TableTime:
		wantLen = 1 + layout.RevisionLen
		_, err = timeline.Decode(key, value)
	case layout.TableChange:
		err = b.addChanges(key, value)
	case layout.TableVersion:
		err = b.versions.Add(key, value)
	case layout.TableRecord:
	default:
		return checkRow(key, value)
	}
	if err == nil && len(key) != wantLen {
		return fmt.Errorf("%w: key of %d bytes in table %q", layout.ErrMalformed, len(key), key[0])
	}
	return err
}

// addChanges checks a record of the change log.
func (b *bodyReader) addChanges(key, value []byte) error {
	at, err := layout.SplitChangeKey(key)
	if err != nil {
		return err
	}
	if at.Revision < b.logged || at.Part == 0 && at.Revision == b.logged {
		return fmt.Errorf("%w: changes of revision %d are out of order", layout.ErrMalformed, at.Revision)
	}
	r := changelog.Read(at.Revision, value)
	for r.Next() {
		b.changes += b.scan.Hasher.Change(r.Revision, &r.Change)
	}
	b.logged = r.Revision
	b.newest = max(b.newest, r.Revision)
	return r.Err
}

// finish compares the trailer, the meta record and what the records add up to, and writes
// meta and progress.
func (b *bodyReader) finish(t *body.Trailer) error {
	if !b.hasMeta {
		b.emptyMeta()
	}
	if !b.hasSettings {
		b.scan.Rest += emptyHash()
	}
	b.versions.EndKey()
	if err := b.compare(t); err != nil || !b.hasMeta {
		return err
	}
	m := b.meta
	m.HistoryBytes, m.HistoryVersions = b.versions.HistoryBytes, b.versions.HistoryVersions
	if err := b.fn([]byte{layout.TableMeta}, layout.AppendMeta(nil, &m)); err != nil {
		return err
	}
	return b.fn([]byte{layout.TableHistory}, layout.AppendProgress(nil, layout.Place{Revision: m.Compact + 1}))
}

func (b *bodyReader) compare(t *body.Trailer) error {
	sum := b.scan.Pairs + b.scan.Rest
	m := &b.meta
	switch {
	case m.Position != Position{Index: t.Index, Term: t.Term} || m.Revision != t.Revision || m.Compact != t.CompactRevision || m.Hash() != t.StateHash:
		return fmt.Errorf("%w: its trailer does not match its content", ErrBody)
	// If the newest revision were compacted, nothing could be read. A version of a
	// future revision would hide those that are written until then.
	case m.Compact < layout.FirstRevision || m.Compact > m.Revision || b.newest > m.Revision:
		return fmt.Errorf("%w: its revisions contradict each other", ErrBody)
	case sum != t.StateHash:
		return fmt.Errorf("%w: the state hash of its content is %016x, want %016x", ErrBody, sum, t.StateHash)
	case m.Pairs != b.scan.Pairs || m.Keys != b.scan.Keys || m.Logical != b.scan.Logical:
		return fmt.Errorf("%w: has %d keys of %d bytes, want %d of %d", ErrBody, b.scan.Keys, b.scan.Logical, m.Keys, m.Logical)
	case b.changes != b.versions.Changes:
		return fmt.Errorf("%w: its change log does not fit its versions", ErrBody)
	}
	return nil
}

// VerifyBody reads and checks a whole snapshot body.
func VerifyBody(r io.Reader) (BodyInfo, error) {
	return readBody(r, func(_, _ []byte) error { return nil })
}

// BodyContents is what a backup holds beside the keys.
type BodyContents struct {
	BodyInfo
	Settings    Settings
	Replication []Record // what the replication layer keeps in the store
}

// InspectBody is VerifyBody, and returns what is in the body.
func InspectBody(r io.Reader) (BodyContents, error) {
	c := BodyContents{Settings: DefaultSettings()}
	info, err := readBody(r, func(key, value []byte) (err error) {
		switch key[0] {
		case layout.TableSetting:
			c.Settings, err = decodeSettings(value)
		case layout.TableRecord:
			c.Replication = append(c.Replication, Record{Key: bytes.Clone(key[1:]), Value: bytes.Clone(value)})
		}
		return err
	})
	c.BodyInfo = info
	return c, err
}

// Restore replaces the whole state with that of a snapshot body. The body is verified
// before anything of it becomes visible; after an error or a crash the old state is
// still there (S7). It belongs to the goroutine that applies.
func (s *Store) Restore(r io.Reader) error {
	if s.exec.failed != nil {
		return s.exec.failed
	}
	verified := false
	err := s.eng.Replace(func(set func(key, value []byte) error) error {
		if _, err := readBody(r, set); err != nil {
			return err
		}
		// Only the swap is left. Readers wait from here until it is visible.
		s.swap.Lock()
		verified = true
		return nil
	})
	if verified {
		defer s.swap.Unlock()
	}
	if err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	s.exec.writes.Reset()
	if err := s.load(); err != nil {
		return s.exec.fail(err)
	}
	if s.observer == nil {
		s.publish()
	} else {
		s.observer.Reset(s.publish)
	}
	s.waiters.WakeAll()
	if s.leases != nil {
		s.leases.LeasesReset()
	}
	return nil
}
