package kvstore

// keyMeta is what Apply knows of a key without asking the engine.
type keyMeta struct {
	key     string
	mod     uint64
	create  uint64
	version uint64
	lease   uint64
	hash    uint64 // its share of the state hash
	size    uint32 // of the value
	stored  uint32 // bytes of its newest version in the engine; 0 when it is absent
	// pending is set between the change and the commit of its batch: the place
	// of the change among those of the batch, counted from 1.
	pending uint32
	exists  bool // false: the key is absent, or its newest version is a deletion
}

// metaCache keeps the metadata of keys that were written or looked at lately,
// so that a put does not ask the engine what was there before; that question
// costs more than the put. It is a cache of two generations: what is used
// moves to the young one, and when that is full the old one is dropped. So it
// holds at most twice its limit, and each access is one or two map lookups.
type metaCache struct {
	limit      int
	limitBytes int
	young, old map[string]*keyMeta
	bytes      int // of the young generation's keys
	hits       uint64
	misses     uint64
}

// cachedKeyBytes is the average key size for which the limit in entries is
// also one in bytes.
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

// age drops the old generation when the young one is full. It must not run
// while changes are pending: they exist only here.
func (c *metaCache) age() {
	if len(c.young) >= c.limit || c.bytes >= c.limitBytes {
		c.young, c.old, c.bytes = make(map[string]*keyMeta, len(c.young)/2), c.young, 0
	}
}
