package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// KV is a key with its value and metadata.
type KV struct {
	Key            string
	Value          []byte
	CreateRevision uint64 // of the write that created the key
	ModRevision    uint64 // of the last write
	Version        uint64 // number of writes since the creation, from 1
	Lease          int64  // 0 if the key has none
}

// wireKV is a pair as JSON has it.
type wireKV struct {
	Key            *string  `json:"key"`
	KeyBase64      *string  `json:"key_base64"`
	Value          *string  `json:"value"`
	ValueBase64    *string  `json:"value_base64"`
	CreateRevision uint64   `json:"create_revision"`
	ModRevision    uint64   `json:"mod_revision"`
	Version        uint64   `json:"version"`
	Lease          wireInt  `json:"lease"`
	Previous       *wireKV  `json:"previous"`
	_              struct{} // further fields are ignored
}

// wireInt is an id that is a number, or a string where numbers lose digits.
type wireInt int64

// UnmarshalJSON reads either form.
func (n *wireInt) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	*n = wireInt(v)
	return err
}

// text returns a byte string in whichever form it came.
func text(plain, encoded *string) (string, error) {
	if encoded == nil {
		if plain == nil {
			return "", nil
		}
		return *plain, nil
	}
	b, err := base64.StdEncoding.DecodeString(*encoded)
	return string(b), err
}

func (w *wireKV) kv() (*KV, error) {
	if w == nil {
		return nil, nil
	}
	key, err := text(w.Key, w.KeyBase64)
	if err != nil {
		return nil, fmt.Errorf("kvd client: key_base64: %w", err)
	}
	value, err := text(w.Value, w.ValueBase64)
	if err != nil {
		return nil, fmt.Errorf("kvd client: value_base64: %w", err)
	}
	return &KV{Key: key, Value: []byte(value), CreateRevision: w.CreateRevision, ModRevision: w.ModRevision, Version: w.Version, Lease: int64(w.Lease)}, nil
}

// putBytes sets field to the byte string in an operation, in the form that suits it.
func putBytes(op map[string]any, field, value string) {
	if utf8.ValidString(value) {
		op[field] = value
	} else {
		op[field+"_base64"] = base64.StdEncoding.EncodeToString([]byte(value))
	}
}

const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

// escape percent-encodes all bytes but the unreserved ones and slashes.
func escape(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; c == '/' || strings.IndexByte(unreserved, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func keyPath(key string) string { return "/v1/kv/" + escape(key) }

// ReadOption changes how a read is carried out.
type ReadOption func(*request)

// AtRevision reads the state as of a revision.
func AtRevision(revision uint64) ReadOption {
	return func(r *request) { r.query.Set("revision", strconv.FormatUint(revision, 10)) }
}

// Stale reads the state of the node that answers, without asking the cluster. If
// maxStaleness is above 0, a node that has not been in touch with a leader for that
// long refuses, and another one is tried.
func Stale(maxStaleness time.Duration) ReadOption {
	return func(r *request) {
		r.query.Set("consistency", "stale")
		if maxStaleness > 0 {
			r.query.Set("max_staleness", maxStaleness.String())
		}
	}
}

// ReportRevision stores into to the revision that a read saw, also if it found nothing.
// A watch from the next one on continues it without a gap:
//
//	var at uint64
//	for kv, err := range c.List(ctx, keys, client.ReportRevision(&at)) { ... }
//	for event, err := range c.Watch(ctx, keys, client.WatchOptions{From: at + 1}) { ... }
func ReportRevision(to *uint64) ReadOption { return func(r *request) { r.seen = to } }

// Get returns a key. Its errors are ErrKeyNotFound, ErrCompacted, ErrUnavailable, and
// those of the context.
func (c *Client) Get(ctx context.Context, key string, options ...ReadOption) (*KV, error) {
	r := newRequest(http.MethodGet, keyPath(key))
	for _, o := range options {
		o(r)
	}
	r.header.Set("Accept", "application/json")
	var out wireKV
	if _, err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return out.kv()
}

// awaitPoll is the length of one long poll.
const awaitPoll = 30 * time.Second

// Await returns the key as soon as its revision is no longer the given one (0: as
// soon as it exists), or ErrNotFound once it is deleted. It returns an error when the
// context ends.
func (c *Client) Await(ctx context.Context, key string, revision uint64) (*KV, error) {
	for {
		r := newRequest(http.MethodGet, keyPath(key))
		r.wait = awaitPoll
		r.header.Set("Accept", "application/json")
		r.query.Set("wait", awaitPoll.String())
		if revision == 0 {
			r.query.Set("if_revision", "0")
		} else {
			r.header.Set("If-None-Match", etag(revision))
		}
		resp, err := c.do(ctx, r)
		if err != nil {
			return nil, err
		}
		kv, err := readKV(resp)
		if kv != nil || err != nil {
			return kv, err
		}
	}
}

// readKV reads a pair; nil if the key has not changed.
func readKV(resp *http.Response) (*KV, error) {
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		return nil, nil
	}
	var out wireKV
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return nil, fmt.Errorf("kvd client: read the answer: %w", err)
	}
	return out.kv()
}

func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// WriteOption changes how a key is written.
type WriteOption func(*request)

// IfRevision writes only if the key has this mod revision; 0 means that the key must
// not exist. Otherwise the error is a *PreconditionFailedError.
func IfRevision(revision uint64) WriteOption {
	return func(r *request) { r.query.Set("if_revision", strconv.FormatUint(revision, 10)) }
}

// IfExists writes only if the key exists.
func IfExists() WriteOption {
	return func(r *request) { r.header.Set("If-Match", "*") }
}

// WithLease binds the key to a lease.
func WithLease(lease int64) WriteOption {
	return func(r *request) { r.query.Set("lease", strconv.FormatInt(lease, 10)) }
}

// WithTTL binds the key to a lease of its own.
func WithTTL(ttl time.Duration) WriteOption {
	return func(r *request) { r.query.Set("ttl", ttl.String()) }
}

// ReturnPrevious asks for the pair as it was before the change.
func ReturnPrevious() WriteOption {
	return func(r *request) { r.query.Set("return", "previous") }
}

// Written is the result of a change.
type Written struct {
	Revision       uint64 // of the store after the change
	CreateRevision uint64
	ModRevision    uint64
	Version        uint64
	Created        bool   // the change created the key
	Deleted        uint64 // number of keys that a deletion deleted
	Lease          int64
	Previous       *KV // nil if the key was absent, or it was not asked for
}

// wireWritten is the answer to a change.
type wireWritten struct {
	Revision       uint64  `json:"revision"`
	CreateRevision uint64  `json:"create_revision"`
	ModRevision    uint64  `json:"mod_revision"`
	Version        uint64  `json:"version"`
	Deleted        uint64  `json:"deleted"`
	Lease          wireInt `json:"lease"`
	Value          string  `json:"value"` // of incr
	Previous       *wireKV `json:"previous"`
}

func (c *sender) write(ctx context.Context, r *request, options []WriteOption) (*Written, string, error) {
	for _, o := range options {
		o(r)
	}
	var out wireWritten
	resp, err := c.call(ctx, r, &out)
	if err != nil {
		return nil, "", err
	}
	previous, err := out.Previous.kv()
	if err != nil {
		return nil, "", err
	}
	return &Written{
		Revision: out.Revision, CreateRevision: out.CreateRevision, ModRevision: out.ModRevision, Version: out.Version,
		Created: resp.StatusCode == http.StatusCreated, Deleted: out.Deleted, Lease: int64(out.Lease), Previous: previous,
	}, out.Value, nil
}

// Put stores a value.
func (c *Client) Put(ctx context.Context, key string, value []byte, options ...WriteOption) (*Written, error) {
	w, _, err := c.write(ctx, change(http.MethodPut, keyPath(key), value), options)
	return w, err
}

// Append appends to the value of a key, and creates the key if it does not exist.
func (c *Client) Append(ctx context.Context, key string, tail []byte, options ...WriteOption) (*Written, error) {
	r := change(http.MethodPost, keyPath(key), tail)
	r.query.Set("append", "")
	w, _, err := c.write(ctx, r, options)
	return w, err
}

// Incr adds to a key whose value is a decimal number, and returns the sum. A key that
// does not exist counts as 0.
func (c *Client) Incr(ctx context.Context, key string, delta int64, options ...WriteOption) (int64, error) {
	r := change(http.MethodPost, keyPath(key), nil)
	r.query.Set("incr", strconv.FormatInt(delta, 10))
	_, value, err := c.write(ctx, r, options)
	if err != nil {
		return 0, err
	}
	sum, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("kvd client: read the sum: %w", err)
	}
	return sum, nil
}

// Delete deletes a key. Deleting an absent key is no error: Written.Deleted is 0.
func (c *Client) Delete(ctx context.Context, key string, options ...WriteOption) (*Written, error) {
	w, _, err := c.write(ctx, change(http.MethodDelete, keyPath(key), nil), options)
	return w, err
}

// DeleteRange deletes all keys of a range in one revision, up to 100,000 keys.
func (c *Client) DeleteRange(ctx context.Context, keys Range) (*Written, error) {
	r := change(http.MethodDelete, "/v1/kv", nil)
	keys.set(r.query)
	w, _, err := c.write(ctx, r, nil)
	return w, err
}

// Range selects keys. The zero value selects all keys.
type Range struct {
	prefix     string
	start, end string
	bounded    bool
}

// Key selects one key.
func Key(key string) Range { return Range{start: key, end: key + "\x00", bounded: true} }

// Prefix selects the keys that begin with prefix.
func Prefix(prefix string) Range { return Range{prefix: prefix} }

// Between selects the keys with start <= key < end. An empty end is open.
func Between(start, end string) Range { return Range{start: start, end: end, bounded: true} }

// Equal reports whether two ranges select the same keys, in whichever form.
func (k Range) Equal(o Range) bool {
	start, end := k.bounds()
	otherStart, otherEnd := o.bounds()
	return start == otherStart && end == otherEnd
}

// bounds returns the first key, and the one after the last, which is empty if there is none.
func (k Range) bounds() (start, end string) {
	if k.bounded {
		return k.start, k.end
	}
	for i := len(k.prefix) - 1; i >= 0; i-- {
		if k.prefix[i] < 0xff {
			return k.prefix, k.prefix[:i] + string([]byte{k.prefix[i] + 1})
		}
	}
	return k.prefix, ""
}

// String describes the range for people.
func (k Range) String() string {
	switch {
	case !k.bounded && k.prefix == "", k.bounded && k.start == "" && k.end == "":
		return "everything"
	case !k.bounded:
		return fmt.Sprintf("prefix %q", k.prefix)
	case k.end == k.start+"\x00":
		return fmt.Sprintf("%q", k.start)
	case k.end == "":
		return fmt.Sprintf("from %q on", k.start)
	}
	return fmt.Sprintf("from %q to %q", k.start, k.end)
}

func (k Range) set(q url.Values) {
	if !k.bounded {
		q.Set("prefix", k.prefix)
		return
	}
	q.Set("start", k.start)
	if k.end != "" {
		q.Set("end", k.end)
	}
}

// Snapshot writes a consistent backup of the whole store, which kvd snapshot verify
// checks and kvd snapshot restore restores. With Stale it needs no quorum.
func (c *Client) Snapshot(ctx context.Context, w io.Writer, options ...ReadOption) error {
	r := newRequest(http.MethodGet, "/v1/snapshot")
	r.stream = true
	for _, o := range options {
		o(r)
	}
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("kvd client: read the snapshot: %w", err)
	}
	return nil
}
