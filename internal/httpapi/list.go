package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/cursor"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
)

const (
	defaultLimit = 1000
	// maxLimit is the largest number of entries on a page. A stream has no limit.
	maxLimit = 10_000
	// maxPageBytes is the size at which a page ends, whatever its limit, because a
	// page is assembled in memory.
	maxPageBytes = 4 << 20
	// maxDelimiter bounds the length of the delimiter.
	maxDelimiter = 256
	// streamChunk is how many bytes of a stream are collected before they are written.
	// Finding the place of the next chunk again costs a few per cent of that.
	streamChunk = 128 << 10
	// streamBytes is what a stream claims: the chunk, and the buffer growing.
	streamBytes = 2 * streamChunk

	ndjsonType = "application/x-ndjson"
)

// listing is the query of GET /v1/kv.
type listing struct {
	rng       kvstore.Range
	digest    uint64
	limit     uint64 // of entries; 0 means no limit
	countOnly bool
	stream    bool
}

// listKeys answers GET and HEAD of /v1/kv.
func (s *Server) listKeys(x *exchange) error {
	l, err := parseListing(&x.query, param.Prefers(x.r.Header["Accept"], ndjsonType, jsonType))
	if err != nil {
		return err
	}
	// What is left of a listing is judged like its beginning: a cursor carries no rights.
	if err := x.visit.ReadsRange(l.rng.Start, l.rng.End); err != nil {
		return err
	}
	if err := x.freshen(l.rng.Revision); err != nil {
		return err
	}
	switch {
	case l.countOnly:
		return s.countKeys(x, l)
	case l.stream:
		return s.streamKeys(x, l)
	}
	return s.pageKeys(x, l)
}

// parseListing reads the whole query.
func parseListing(q *param.Query, stream bool) (*listing, error) {
	l := &listing{stream: stream}
	var err error
	if l.rng, err = q.Range(); err != nil {
		return nil, err
	}
	if l.rng.Reverse, err = q.Flag("reverse"); err != nil {
		return nil, err
	}
	if l.rng.KeysOnly, err = q.Flag("keys_only"); err != nil {
		return nil, err
	}
	if l.countOnly, err = q.Flag("count_only"); err != nil {
		return nil, err
	}
	if l.rng.Revision, _, err = q.Number("revision", 1); err != nil {
		return nil, err
	}
	if err := l.parseLimit(q); err != nil {
		return nil, err
	}
	if err := l.parseDelimiter(q); err != nil {
		return nil, err
	}
	return l, l.parseCursor(q)
}

func (l *listing) parseLimit(q *param.Query) error {
	limit, ok, err := q.Number("limit", 1)
	switch {
	case err != nil:
		return err
	case ok && limit > maxLimit && !l.stream:
		return badRequest("the parameter \"limit\" is at most %d for a page; follow \"next\", or request a stream with Accept: %s", maxLimit, ndjsonType)
	case ok:
		l.limit = limit
	case !l.stream:
		l.limit = defaultLimit
	}
	return nil
}

func (l *listing) parseDelimiter(q *param.Query) error {
	d, ok := q.Get("delimiter")
	if !ok {
		return nil
	}
	if d == "" || len(d) > maxDelimiter {
		return badRequest("the parameter \"delimiter\" must have 1 to %d bytes", maxDelimiter)
	}
	if l.countOnly {
		return badRequest("count_only counts keys, not groups; omit \"delimiter\"")
	}
	prefix, _ := q.Get("prefix")
	l.rng.Delimiter, l.rng.GroupAfter = []byte(d), len(prefix)
	return nil
}

// parseCursor continues where an earlier page of the same listing ended.
func (l *listing) parseCursor(q *param.Query) error {
	l.digest = cursor.Digest(&l.rng)
	text, ok := q.Get("cursor")
	if !ok {
		return nil
	}
	c, err := cursor.Parse(text)
	if err != nil {
		return badRequest("invalid parameter \"cursor\"; it must be the \"next\" of an earlier response")
	}
	if l.countOnly {
		return badRequest("count_only counts the whole range; omit \"cursor\"")
	}
	if c.Digest != l.digest || (l.rng.Revision != 0 && l.rng.Revision != c.Revision) {
		return badRequest("the parameter \"cursor\" belongs to a listing with a different range, direction, delimiter, or revision; repeat the parameters of the first page")
	}
	c.Resume(&l.rng)
	return nil
}

// countKeys answers ?count_only.
func (s *Server) countKeys(x *exchange, l *listing) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	n, revision, err := s.opts.Store.Count(ctx, l.rng)
	if err := x.visit.After(err); err != nil {
		return err
	}
	x.setRevision(revision)
	x.Header()["Vary"] = varyAccept
	return x.writeJSON(http.StatusOK, struct {
		Revision uint64 `json:"revision"`
		Count    uint64 `json:"count"`
	}{revision, n})
}

// page collects the entries of one answer.
//
// It claims memory as it grows, but never waits for it while the store's iterator is
// open: a page that finds no more room ends early, with "next", and one without room for
// its first entry is begun again once it has claimed that much.
type page struct {
	x        *exchange
	listing  *listing
	kvs      []byte // the elements of "kvs", with commas
	text     []byte // likewise, of "prefixes"
	binary   []byte // and of "prefixes_base64"
	count    uint64
	lastItem []byte // bound after the last entry
	more     bool
	wanted   int64 // what the first entry needs, if there was no room for it
}

// add adds an entry, or notes that there are more than fit.
func (p *page) add(it kvstore.Item) (bool, error) {
	used := int64(len(p.kvs) + len(p.text) + len(p.binary))
	// Looked at first, because itemSize takes time: a page of large values for which
	// there is no memory must not cost the node more than finding that out.
	if least := used + int64(len(it.KV.Value)); p.count == 0 && !p.listing.rng.KeysOnly && !p.room(least) {
		p.wanted = growth(least)
		return false, nil
	}
	total := used + itemSize(&it, p.listing.rng.KeysOnly)
	// The first entry is added however large: a listing that does not advance would
	// never end.
	if p.count == p.listing.limit || p.count > 0 && total > maxPageBytes {
		p.more = true
		return false, nil
	}
	if !p.room(total) {
		if p.more = p.count > 0; !p.more {
			p.wanted = growth(total)
		}
		return false, nil
	}
	p.count++
	p.lastItem = cursor.After(&it, p.listing.rng.Reverse)
	switch {
	case it.Group == nil:
		p.kvs = append(reply.AppendKV(p.kvs, &it.KV, p.listing.rng.KeysOnly), ',')
	case utf8.Valid(it.Group):
		p.text = append(reply.AppendString(p.text, it.Group), ',')
	default:
		p.binary = append(append(reply.AppendBase64(append(p.binary, '"'), it.Group), '"'), ',')
	}
	return true, nil
}

// room claims memory for a page of a size, in steps, because claims cost something.
func (p *page) room(size int64) bool {
	n := growth(size)
	return n <= p.x.held.memory.Bytes() || p.x.held.memory.Try(n)
}

// growth is what buffers of a size in total may take while they grow: the old and the
// new one exist while append copies.
func growth(size int64) int64 { return budget.Steps(2 * size) }

// itemSize returns at most how long an entry becomes.
func itemSize(it *kvstore.Item, keysOnly bool) int64 {
	const names = 256 // and numbers
	if it.Group != nil {
		return reply.BytesSize(it.Group) + 1
	}
	n := reply.BytesSize(it.KV.Key) + names
	if !keysOnly {
		n += reply.BytesSize(it.KV.Value)
	}
	return n
}

// pageKeys answers with a page.
func (s *Server) pageKeys(x *exchange, l *listing) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	p := &page{x: x, listing: l}
	revision, err := s.opts.Store.List(ctx, l.rng, p.add)
	for err == nil && p.wanted > 0 {
		x.held.memory.Release() // a request that waits holds nothing
		if err = x.held.memory.Wait(ctx, p.wanted); err == nil {
			p.wanted = 0
			revision, err = s.opts.Store.List(ctx, l.rng, p.add)
		}
	}
	if err := x.visit.After(err); err != nil {
		return err
	}
	x.held.memory.Lower(int64(cap(p.kvs) + cap(p.text) + cap(p.binary)))
	x.setRevision(revision)
	x.Header()["Vary"] = varyAccept
	x.writeDocument(jsonType, http.StatusOK, p.document(revision)...)
	return nil
}

// document returns the parts of the whole answer. They are not joined, which would
// double what it holds.
func (p *page) document(revision uint64) [][]byte {
	head := append(make([]byte, 0, 64), `{"revision":`...)
	head = append(strconv.AppendUint(head, revision, 10), `,"kvs":[`...)
	parts := [][]byte{head, withoutComma(p.kvs)}
	if p.listing.rng.Delimiter != nil {
		parts = append(parts, []byte(`],"prefixes":[`), withoutComma(p.text))
	}
	if len(p.binary) > 0 {
		parts = append(parts, []byte(`],"prefixes_base64":[`), withoutComma(p.binary))
	}
	tail := reply.AppendNumber([]byte{']'}, "count", p.count)
	if next := p.listing.next(p.more, p.lastItem, revision); next != "" {
		tail = append(append(append(tail, `,"next":"`...), next...), '"')
	}
	return append(parts, append(tail, '}', '\n'))
}

func withoutComma(list []byte) []byte { return list[:max(0, len(list)-1)] }

// next returns the cursor that continues an answer, or "" if nothing is left.
func (l *listing) next(more bool, bound []byte, revision uint64) string {
	if !more || bound == nil {
		return ""
	}
	c := cursor.Cursor{Revision: revision, Digest: l.digest, Bound: bound}
	return c.String()
}

// errClientGone ends a listing whose client has disconnected.
var errClientGone = errors.New("the client is gone")

// stream sends entries as lines, in chunks, so that its length does not matter.
//
// Each chunk is read by a listing of its own, of the rest at the same revision, and sent
// after that has ended. An iterator that stayed open while a client does not read would
// keep whatever is overwritten meanwhile, in memory and on disk. So a stream that takes
// longer than history is kept breaks off.
type stream struct {
	x       *exchange
	listing *listing
	rest    kvstore.Range // what has not been sent
	buf     []byte
	count   uint64
	last    []byte // bound after the last entry of a chunk, or of all
	more    bool   // the limit was reached before the end
	full    bool   // the chunk was, or the entry after it needs more memory
	wanted  int64  // what that entry needs; 0 if it is not known to need more
	begun   bool
}

// streamKeys answers with a stream of lines. The revision is chosen before the listing
// begins, because the header has to name it. The store may compact it away in between;
// if the client did not ask for that revision, a newer one does as well.
func (s *Server) streamKeys(x *exchange, l *listing) error {
	if pretty, _ := x.query.Flag("pretty"); pretty {
		return badRequest("a stream has one line per entry and cannot be indented; omit \"pretty\"")
	}
	// A stream takes as long as its client reads, so only a timeout that the request
	// names ends it early.
	ctx, cancel, err := longContext(x)
	if err != nil {
		return err
	}
	defer cancel()
	if err := x.held.memory.Wait(ctx, streamBytes); err != nil {
		return err
	}
	pinned := l.rng.Revision != 0
	for attempt := 0; ; attempt++ {
		if !pinned {
			l.rng.Revision = s.opts.Store.Revision()
		}
		out := &stream{x: x, listing: l, rest: l.rng}
		err := out.run(ctx, s.opts.Store)
		var gone *kvstore.CompactedError
		if errors.As(err, &gone) && !pinned && !out.begun && attempt < 3 {
			continue // compacted since the line above
		}
		if errors.Is(err, errClientGone) {
			panic(http.ErrAbortHandler)
		}
		return err
	}
}

func (o *stream) run(ctx context.Context, store Store) error {
	if o.x.r.Method == http.MethodHead {
		o.begin()
		return nil
	}
	for o.full = true; o.full; {
		o.full = false
		if _, err := store.List(ctx, o.rest, o.add); err != nil {
			return err
		}
		if !o.full {
			o.end()
		}
		if err := o.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// next sends the chunk and prepares for the one after it.
func (o *stream) next(ctx context.Context) error {
	if err := o.x.visit.Again(); err != nil {
		return err
	}
	if len(o.buf) > 0 {
		if err := o.flush(); err != nil {
			return err
		}
	}
	if cap(o.buf) > 2*streamChunk {
		o.buf = nil // one entry was very large
	}
	o.x.held.memory.Lower(streamBytes)
	if o.full && o.last == nil && o.count > 0 {
		o.full = false // nothing can follow
		o.end()
		return o.flush()
	}
	if o.last != nil {
		c := cursor.Cursor{Revision: o.listing.rng.Revision, Bound: o.last}
		c.Resume(&o.rest)
	}
	if o.wanted == 0 {
		return nil
	}
	defer func() { o.wanted = 0 }()
	return o.x.held.memory.WaitFor(ctx, streamBytes+o.wanted, writeGrace)
}

func (o *stream) add(it kvstore.Item) (bool, error) {
	if o.count == o.listing.limit && o.listing.limit != 0 {
		o.more = true
		return false, nil
	}
	if size := o.size(&it); size > streamChunk {
		if n := growth(size); o.x.held.memory.Bytes() < streamBytes+n && !o.x.held.memory.Try(streamBytes+n) {
			o.full, o.wanted, o.last = true, n, cursor.At(&it, o.listing.rng.Reverse)
			return false, nil
		}
	}
	o.count++
	if it.Group != nil {
		o.buf = append(reply.AppendBytes(append(o.buf, '{'), "prefix", it.Group), '}')
	} else {
		o.buf = reply.AppendKV(o.buf, &it.KV, o.listing.rng.KeysOnly)
	}
	o.buf = append(o.buf, '\n')
	o.full = len(o.buf) >= streamChunk
	if o.full || o.count == o.listing.limit {
		o.last = cursor.After(&it, o.listing.rng.Reverse)
	}
	return !o.full, nil
}

// size returns how long the line of an entry becomes, if it may be longer than a chunk,
// and else something that is not.
func (o *stream) size(it *kvstore.Item) int64 {
	const longest = 6 // bytes that one becomes by escapes
	if o.listing.rng.KeysOnly || len(it.KV.Value) < streamChunk/longest/2 {
		return 0
	}
	return itemSize(it, false)
}

// end appends the line that distinguishes a complete stream from one that broke off.
func (o *stream) end() {
	o.buf = append(o.buf, `{"type":"end"`...)
	o.buf = reply.AppendNumber(o.buf, "count", o.count)
	o.buf = reply.AppendNumber(o.buf, "revision", o.listing.rng.Revision)
	if next := o.listing.next(o.more, o.last, o.listing.rng.Revision); next != "" {
		o.buf = append(o.buf, `,"next":"`...)
		o.buf = append(append(o.buf, next...), '"')
	}
	o.buf = append(o.buf, '}', '\n')
}

func (o *stream) begin() {
	o.begun = true
	o.x.held.leave()
	h := o.x.Header()
	h["X-Content-Type-Options"] = nosniff
	h["Vary"] = varyAccept
	o.x.set("Content-Type", ndjsonType)
	o.x.setRevision(o.listing.rng.Revision)
	o.x.WriteHeader(http.StatusOK)
}

// flush sends what has been collected, all the way to the socket.
func (o *stream) flush() error {
	if !o.begun {
		o.begin()
	}
	o.x.limitWriteTime(len(o.buf))
	if _, err := o.x.Write(o.buf); err != nil {
		return errClientGone
	}
	o.buf = o.buf[:0]
	if err := http.NewResponseController(o.x.w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return errClientGone
	}
	return nil
}

// deleteRange answers DELETE /v1/kv. A request without bounds, or with empty ones only
// (an unset variable in a script: ?prefix=$P), must not delete everything.
func (s *Server) deleteRange(x *exchange) error {
	prefix, _ := x.query.Get("prefix")
	start, _ := x.query.Get("start")
	if prefix == "" && start == "" && !x.query.Has("end") {
		return badRequest("specify what to delete with a prefix that is not empty (?prefix=P) or with ?start=A&end=B; ?start=%%00 without end deletes everything")
	}
	r, err := x.query.Range()
	if err != nil {
		return err
	}
	if err := param.RefuseConditions(x.r.Header, "a range cannot be deleted conditionally"); err != nil {
		return err
	}
	cmd := &kvstore.Command{Op: kvstore.OpDeleteRange, Key: r.Start, End: r.End}
	if err := x.visit.Permit(cmd); err != nil { // before it is counted
		return err
	}
	// A repeat of a request that was carried out gets its answer, whatever there is now.
	if x.once == nil || x.once.Key == "" {
		if err := s.checkRangeDelete(x, r); err != nil {
			return err
		}
	}
	res, err := x.do(cmd)
	if err != nil {
		return err
	}
	x.writeDeleted(&kvstore.Command{}, &res)
	return nil
}

// fewKeys is how many keys a range delete may have that counts them at once.
const fewKeys = 1000

// checkRangeDelete refuses a range with too many keys before it is proposed. In the log
// it would be refused as well, but only after every replica has counted up to the
// limit, while all other writes wait. A state that is behind is no reason to refuse:
// the keys may be gone by now.
func (s *Server) checkRangeDelete(x *exchange, r kvstore.Range) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	r.KeysOnly = true
	small, at, err := s.isSmall(ctx, r)
	if err != nil || small {
		return err
	}
	if err := s.opts.Replicator.Barrier(ctx, x.timing.noteStage()); err != nil {
		return err
	}
	if s.opts.Store.Revision() != at {
		if small, _, err = s.isSmall(ctx, r); err != nil || small {
			return err
		}
	}
	return api.Errorf(api.TooLarge, "the range has more than %d keys, the limit of one range delete; delete it in parts", kvstore.MaxRangeDelete)
}

// isSmall reports whether a range has at most as many keys as a range delete may
// remove, and at which revision. Large ranges are counted one after another: as many
// at once as there are clients would leave no processor to the other requests.
func (s *Server) isSmall(ctx context.Context, r kvstore.Range) (small bool, at uint64, err error) {
	n, alone := 0, false
	at, err = s.opts.Store.List(ctx, r, func(kvstore.Item) (bool, error) {
		if n++; n == fewKeys {
			select {
			case s.counting <- struct{}{}:
				alone = true
			case <-ctx.Done():
				return false, ctx.Err()
			}
		}
		return n <= kvstore.MaxRangeDelete, nil
	})
	if alone {
		<-s.counting
	}
	return n <= kvstore.MaxRangeDelete, at, err
}
