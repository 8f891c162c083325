package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// contractWatch follows changes over all that happens to the cluster: it resumes at a
// random node whenever its stream ends.
type contractWatch struct {
	t      testing.TB
	c      *cluster
	chance *rand.Rand
	client *http.Client

	query    url.Values
	matches  func(*event) bool
	previous bool
	sse      bool

	mu struct {
		sync.Mutex
		revisions [][]object // the events of each revision
		gaps      [][2]uint64
		streams   int
		wrong     error
	}
	resume  uint64   // the first revision that was not received
	pending []object // of a revision that is not complete
}

// watches returns watches of all forms.
func watches(t testing.TB, c *cluster, random *rand.Rand) []*contractWatch {
	within := func(start, end string) func(*event) bool {
		return func(e *event) bool { return e.key >= start && (end == "" || e.key < end) }
	}
	out := []*contractWatch{
		{query: url.Values{"prefix": {""}}, previous: true, matches: within("", "")},
		{query: url.Values{"prefix": {"a"}}, matches: within("a", "b")},
		{query: url.Values{"prefix": {""}, "events": {"delete"}}, previous: true, matches: func(e *event) bool { return e.deleted }},
		{query: url.Values{"key": {"a"}, "events": {"put"}}, matches: func(e *event) bool { return e.key == "a" && !e.deleted }},
		{query: url.Values{"start": {"b"}, "end": {"z"}}, sse: true, matches: within("b", "z")},
	}
	for _, w := range out {
		w.t, w.c, w.resume = t, c, 1
		w.chance = rand.New(rand.NewPCG(random.Uint64(), 3))
		w.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if w.previous {
			w.query.Set("previous", "")
		}
	}
	return out
}

// run follows until the context ends, or something is wrong.
func (w *contractWatch) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := w.follow(ctx, pick(w.chance, w.c.nodes)); err != nil {
			w.mu.Lock()
			w.mu.wrong = err
			w.mu.Unlock()
			return
		}
	}
}

// follow reads one stream to its end. An error is one of kvd.
func (w *contractWatch) follow(ctx context.Context, m *member) error {
	query := url.Values{}
	for k, v := range w.query {
		query[k] = v
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "", nil)
	if err != nil {
		return err
	}
	if w.sse {
		req.Header.Set("Accept", "text/event-stream")
	}
	if w.sse && w.resume > 1 {
		req.Header.Set("Last-Event-ID", strconv.FormatUint(w.resume-1, 10))
	} else {
		query.Set("from_revision", strconv.FormatUint(w.resume, 10))
	}
	if req.URL, err = url.Parse(m.url() + "/v1/watch?" + query.Encode()); err != nil {
		return err
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil // the node is down
	}
	defer resp.Body.Close()
	w.pending = nil
	switch resp.StatusCode {
	case 200:
		return w.read(resp)
	case 410:
		var p struct {
			Compact uint64 `json:"compact_revision"`
		}
		line, _ := bufio.NewReader(resp.Body).ReadString('\n') // a broken answer does not decode
		if err := decodeNumbers(line, &p); err != nil {
			return err
		}
		return w.skip(p.Compact)
	case 503:
		return nil
	}
	line, _ := bufio.NewReader(resp.Body).ReadString('\n') // for the message only
	return fmt.Errorf("resume at %d: %s %s", w.resume, resp.Status, line)
}

func (w *contractWatch) read(resp *http.Response) error {
	w.mu.Lock()
	w.mu.streams++
	w.mu.Unlock()
	lines := bufio.NewReaderSize(resp.Body, 1<<20)
	id := uint64(0)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil // the stream ended, or broke in the middle of a line
		}
		text := strings.TrimSuffix(line, "\n")
		if w.sse {
			switch {
			case text == "":
				id = 0
				continue
			case strings.HasPrefix(text, "id: "):
				id, _ = strconv.ParseUint(text[4:], 10, 64) // 0 is judged
				continue
			}
			text = strings.TrimPrefix(text, "data: ")
		}
		var e object
		if err := decodeNumbers(text, &e); err != nil {
			return err
		}
		if err := w.take(e, id); err != nil {
			return fmt.Errorf("line %s: %w", text, err)
		}
	}
}

// take takes one line.
func (w *contractWatch) take(e object, id uint64) error {
	if e["type"] == "compacted" {
		n, err := revisionOf(e["compact_revision"])
		return errors.Join(err, w.skip(n))
	}
	name := "mod_revision"
	if e["type"] == "progress" {
		name = "revision"
	}
	revision, err := revisionOf(e[name])
	if err != nil {
		return err
	}
	_, more := e["more"]
	if w.sse && (more && id != 0 || !more && id != revision) {
		return fmt.Errorf("its id is %d", id)
	}
	if e["type"] == "progress" {
		if len(w.pending) > 0 || revision+1 < w.resume {
			return fmt.Errorf("progress in the middle of a revision, or back from %d", w.resume)
		}
		w.resume = revision + 1
		return nil
	}
	if revision < w.resume {
		return fmt.Errorf("an event from before %d", w.resume)
	}
	delete(e, "more")
	w.pending = append(w.pending, e)
	if more {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.revisions = append(w.mu.revisions, w.pending)
	w.resume, w.pending = revision+1, nil
	return nil
}

// skip goes on after a compaction.
func (w *contractWatch) skip(compact uint64) error {
	if compact <= w.resume {
		return fmt.Errorf("compacted up to %d, but the watch is at %d", compact, w.resume)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.gaps = append(w.mu.gaps, [2]uint64{w.resume, compact})
	w.resume = compact
	return nil
}

// judge compares what came with the events of the model. It may be called again until
// everything has come.
func (w *contractWatch) judge(m *contractModel) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.wrong != nil {
		return hopeless{w.mu.wrong}
	}
	var got []object
	for _, events := range w.mu.revisions {
		got = append(got, events...)
	}
	n := 0
	for i := range m.events {
		e := &m.events[i]
		if !w.matches(e) || w.skipped(e.revision) {
			continue
		}
		if n == len(got) {
			return fmt.Errorf("%d events came; missing is %s at revision %d", n, strconv.Quote(e.key), e.revision)
		}
		if want := w.eventOf(e); !reflect.DeepEqual(got[n], want) && !w.lostPrevious(e, got[n], want, m.compact) {
			return hopeless{fmt.Errorf("event %d is\n     %s\nwant %s", n, encode(got[n]), encode(want))}
		}
		n++
	}
	if n < len(got) {
		return hopeless{fmt.Errorf("%d events came, the next of which is too much: %s", n, encode(got[n]))}
	}
	return nil
}

func (w *contractWatch) skipped(revision uint64) bool {
	for _, gap := range w.mu.gaps {
		if revision >= gap[0] && revision < gap[1] {
			return true
		}
	}
	return false
}

func (w *contractWatch) eventOf(e *event) object {
	out := object{"type": "delete", "mod_revision": number(e.revision)}
	setBytes(out, "key", e.key)
	if !e.deleted {
		out = pairOf(e.key, e.now)
		out["type"] = "put"
	}
	if w.previous {
		out["previous"] = nil
		if e.previous != nil {
			out["previous"] = pairOf(e.key, *e.previous)
		}
	}
	return out
}

// lostPrevious allows a previous pair to be missing if it was compacted away.
func (w *contractWatch) lostPrevious(e *event, got, want object, compact uint64) bool {
	if e.revision > compact || got["previous"] != nil {
		return false
	}
	want["previous"] = nil
	return reflect.DeepEqual(got, want)
}
