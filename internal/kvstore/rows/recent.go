package rows

// recentBytes bounds a generation of recent rows: locks and leases that are in use at the
// moment, with their queues.
const recentBytes = 1 << 20

// recentOverhead is about what a row takes beside its key and value.
const recentOverhead = 128

// recent remembers committed rows that were read or written lately, and those that do not
// exist. A row is kept for one to two generations: what is used moves to the young one, and
// once that is full, what is only in the old one is forgotten.
type recent struct {
	young, old map[string][]byte // nil: the row does not exist
	bytes      int               // of the young ones
}

func (r *recent) get(key string) (value []byte, known bool) {
	if value, known = r.young[key]; known {
		return value, true
	}
	if value, known = r.old[key]; known {
		r.put(key, value)
	}
	return value, known
}

func (r *recent) put(key string, value []byte) {
	if before, known := r.young[key]; known {
		r.bytes -= rowBytes(key, before)
	}
	if r.bytes += rowBytes(key, value); r.young == nil || r.bytes > recentBytes {
		r.old, r.young, r.bytes = r.young, make(map[string][]byte), rowBytes(key, value)
	}
	r.young[key] = value
}

func rowBytes(key string, value []byte) int { return len(key) + len(value) + recentOverhead }
