package kvstore

// keyState is what is known of a key at some revision without its value.
type keyState struct {
	mod     uint64
	create  uint64
	version uint64
	lease   uint64
	// attributes are nil for almost all keys.
	attributes *Attributes
	hash       uint64 // the term of the key in the state hash
	size       uint32 // of the value
	stored     uint32 // bytes of the version in the engine, key included; 0 if the key is absent
	exists     bool   // false if the key is absent or the version is a deletion
}

// keyMeta is what Apply knows about a key without asking the engine.
type keyMeta struct {
	key string
	keyState
	// pending and draft are set from a change of the key until the commit to the
	// engine, or until the revision is committed or dropped: the position of the
	// change in executor.changes, from 1. See overlay.
	pending, draft uint32
}

// metaCache keeps the metadata of keys that were recently written or looked up. It
// saves a put the question what was there before, which costs more than the put.
//
// It has two generations. What is used moves to the young one; when that is full, it
// becomes the old one, and the previous old one is dropped. So the cache holds at
// most twice its limit, and an access is one or two map lookups. A least-recently-used
// list would hold exactly the right keys, for two pointers per key and a list
// operation per access.
type metaCache struct {
	limit      int
	limitBytes int
	young, old map[string]*keyMeta
	bytes      int // of the keys in the young generation
	hits       uint64
	misses     uint64
}

// cachedKeyBytes is the average key size up to which the limit in entries decides.
// With longer keys (they may have 4 KiB) the limit in bytes does.
const cachedKeyBytes = 256

func newMetaCache(limit int) *metaCache {
	c := &metaCache{limit: limit, limitBytes: limit * cachedKeyBytes}
	c.clear()
	return c
}

func (c *metaCache) clear() {
	c.young, c.old, c.bytes = make(map[string]*keyMeta), nil, 0
}

func (c *metaCache) get(key []byte) *keyMeta {
	if m := c.young[string(key)]; m != nil {
		c.hits++
		return m
	}
	if m := c.old[string(key)]; m != nil {
		c.hits++
		c.put(m)
		return m
	}
	c.misses++
	return nil
}

func (c *metaCache) put(m *keyMeta) {
	c.young[m.key] = m
	c.bytes += len(m.key)
}

// age drops the old generation if the young one is full. It must not run while
// writes are pending: until the commit, the cache alone knows about them, and a key
// that was dropped would be looked up in the engine and found in its old state.
func (c *metaCache) age() {
	if len(c.young) >= c.limit || c.bytes >= c.limitBytes {
		c.young, c.old, c.bytes = make(map[string]*keyMeta, len(c.young)/2), c.young, 0
	}
}
