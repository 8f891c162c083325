package node

import (
	"io"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// machine lets raftnode drive the store: it translates entries and views, and
// nothing else. Apply and Restore are called by one goroutine.
type machine struct {
	store   *kvstore.Store
	entries []kvstore.Entry // reused between calls
}

func (m *machine) Apply(entries []raftnode.Entry) error {
	m.entries = m.entries[:0]
	for i := range entries {
		e := &entries[i]
		m.entries = append(m.entries, kvstore.Entry{
			Index:       e.Index,
			Term:        e.Term,
			Commands:    e.Commands,
			Records:     recordsToStore(e.Records),
			WantResults: e.WantResults,
		})
	}
	if err := m.store.Apply(m.entries); err != nil {
		return err
	}
	for i := range entries {
		if entries[i].WantResults {
			entries[i].Results = resultPointers(m.entries[i].Results)
		}
	}
	clear(m.entries)
	return nil
}

func resultPointers(results []kvstore.Result) []any {
	out := make([]any, len(results))
	for i := range results {
		out[i] = &results[i]
	}
	return out
}

func recordsToStore(records []raftnode.Record) []kvstore.Record {
	if len(records) == 0 {
		return nil
	}
	out := make([]kvstore.Record, len(records))
	for i, r := range records {
		out[i] = kvstore.Record(r)
	}
	return out
}

func (m *machine) View() (raftnode.View, error) {
	v, err := m.store.View()
	if err != nil {
		return nil, err
	}
	return view{v}, nil
}

func (m *machine) Durable() (raftnode.View, error) {
	v, err := m.store.Durable()
	if v == nil || err != nil {
		return nil, err // a typed nil would not be nil to the caller
	}
	return view{v}, nil
}

func (m *machine) Flush() error              { return m.store.Flush() }
func (m *machine) Restore(r io.Reader) error { return m.store.Restore(r) }
func (m *machine) Maintain() (bool, error)   { return m.store.Maintain() }

type view struct{ *kvstore.View }

func (v view) Records() ([]raftnode.Record, error) {
	records, err := v.View.Records()
	if err != nil {
		return nil, err
	}
	out := make([]raftnode.Record, len(records))
	for i, r := range records {
		out[i] = raftnode.Record(r)
	}
	return out, nil
}
