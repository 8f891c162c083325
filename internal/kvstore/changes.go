package kvstore

// noteChanges collects the changes of the current call for the observer, in three
// allocations.
func (x *executor) noteChanges() {
	if len(x.changes) == 0 {
		return
	}
	revisions, keyBytes := uint64(0), 0
	last := uint64(0)
	for i := range x.changes {
		if c := &x.changes[i]; c.mod != last {
			revisions, last = revisions+1, c.mod
		}
		keyBytes += len(x.changes[i].meta.key)
	}
	out := make([]Change, 0, revisions)
	events := make([]Event, len(x.changes))
	keys := make([]byte, 0, keyBytes)
	from := 0
	for i := range x.changes {
		keys = x.changes[i].event(&events[i], keys)
		if i+1 == len(x.changes) || x.changes[i+1].mod != x.changes[i].mod {
			out = append(out, Change{Revision: x.changes[i].mod, Events: events[from : i+1 : i+1]})
			from = i + 1
		}
	}
	x.observations = out
}

// event sets e to what the change is for a watch. The key is appended to keys, which
// has room for it.
func (c *change) event(e *Event, keys []byte) []byte {
	at := len(keys)
	keys = append(keys, c.meta.key...)
	e.Deleted = !c.exists
	if e.Deleted {
		e.KV.ModRevision = c.mod
	} else {
		e.KV = c.kv()
		e.KV.Value = c.value
	}
	e.KV.Key = keys[at:len(keys):len(keys)]
	return keys
}
