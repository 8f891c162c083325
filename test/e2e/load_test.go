package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keyPrefix is the prefix of all keys of a load.
const keyPrefix = "load/"

// Short timeouts, because unknown outcomes come from clients that give up.
const (
	loadTimeout = time.Second             // requested from kvd
	loadLimit   = 1500 * time.Millisecond // of the client
)

// load is a set of clients that read and write through all members, each as fast
// as it gets answers, and the history that they observed.
type load struct {
	members []*member
	begin   time.Time
	workers []*worker
	stopped chan struct{}
	done    sync.WaitGroup
	acked   atomic.Int64 // acknowledged writes
	read    atomic.Int64 // answered reads
	paced   atomic.Int64 // answered operations of paced clients
}

// worker is one client. Its fields belong to its goroutine until the load has
// stopped.
type worker struct {
	load       *load
	id         int
	face       face
	random     *rand.Rand
	keys       []string
	pace       time.Duration // between two operations; 0 for none
	plain      bool          // only operations that porcupine's registers model
	padding    int           // of values
	budget     int           // operations of a plain worker
	operations []*operation
	lastRev    map[string]uint64 // of each key, as last seen by this client
	surprises  []string          // answers that violate the contract
	writes     int
}

// loadShape sets the number of clients and keys of a load.
type loadShape struct {
	clients, keys int
	// paced clients run plain operations on their own keys, few enough for
	// porcupine to judge.
	paced, pacedKeys int
	pace             time.Duration
	// faces are what the clients use, in turn; without any, all use kvd's own.
	faces []face
	// padding is how long the values are at least.
	padding int
}

// face is an API of kvd's.
type face interface {
	// attempt carries out an operation through a member, and notes its outcome. An error
	// tells of an answer that violates the contract.
	attempt(m *member, o *operation) error
}

func startLoad(t testing.TB, c *cluster, random *rand.Rand, shape loadShape) *load {
	t.Helper()
	l := &load{members: c.nodes, begin: time.Now(), stopped: make(chan struct{})}
	heavy, light := loadKeys("h", shape.keys), loadKeys("p", shape.pacedKeys)
	for range shape.clients {
		l.addWorker(random, heavy, 0)
	}
	for range shape.paced {
		l.addWorker(random, light, shape.pace)
		l.workers[len(l.workers)-1].budget = maxJudged / shape.paced
	}
	for i, w := range l.workers {
		w.face, w.padding = native{}, shape.padding
		if len(shape.faces) > 0 {
			w.face = shape.faces[i%len(shape.faces)]
		}
		l.done.Go(w.run)
	}
	return l
}

func loadKeys(kind string, n int) (keys []string) {
	for i := range n {
		keys = append(keys, fmt.Sprintf("%s%s%d", keyPrefix, kind, i))
	}
	return keys
}

func (l *load) addWorker(random *rand.Rand, keys []string, pace time.Duration) {
	l.workers = append(l.workers, &worker{
		load: l, id: len(l.workers), keys: keys, pace: pace, plain: pace > 0,
		random: rand.New(rand.NewPCG(random.Uint64(), 0)), lastRev: make(map[string]uint64),
	})
}

// stop stops the load and returns the history.
func (l *load) stop() (history []*operation) {
	close(l.stopped)
	l.done.Wait()
	for _, w := range l.workers {
		history = append(history, w.operations...)
	}
	return history
}

// answered returns how many operations were answered.
func (l *load) answered() int { return int(l.acked.Load() + l.read.Load()) }

// surprises returns the answers that violate the contract.
func (l *load) surprises() (all []string) {
	for _, w := range l.workers {
		all = append(all, w.surprises...)
	}
	return all
}

func (w *worker) run() {
	for w.wait() {
		o := w.choose()
		m := w.load.members[w.random.IntN(len(w.load.members))]
		o.call = time.Since(w.load.begin)
		surprise := w.face.attempt(m, o)
		o.end = time.Since(w.load.begin)
		w.take(m, o, surprise)
	}
}

// wait keeps the worker's pace, or gives nodes that are down time to start. It
// returns false once the load is stopped or the worker has used up its budget
// of operations for porcupine.
func (w *worker) wait() bool {
	if w.plain && len(w.operations) >= w.budget {
		return false
	}
	pause := w.pace
	if n := len(w.operations); pause == 0 && n > 0 && w.operations[n-1].outcome == failed {
		pause = 5 * time.Millisecond
	}
	if pause == 0 {
		select {
		case <-w.load.stopped:
			return false
		default:
			return true
		}
	}
	select {
	case <-w.load.stopped:
		return false
	case <-time.After(pause):
		return true
	}
}

// choose picks the next operation.
func (w *worker) choose() *operation {
	o := &operation{worker: w.id, key: w.keys[w.random.IntN(len(w.keys))]}
	switch n := w.random.IntN(100); {
	case n < 35:
		o.kind = opGet
	case n < 75 || w.plain && n < 90:
		o.kind = opPut
	case n < 80 && !w.plain:
		o.kind = opList
	case n < 92 && !w.plain:
		o.kind, o.ifRev = opSwap, w.lastRev[o.key]
	default:
		o.kind = opDelete
	}
	if o.kind == opPut || o.kind == opSwap {
		w.writes++
		o.value = fmt.Sprintf("%d.%d%*s", w.id, w.writes, w.padding, "")
	}
	return o
}

// native is kvd's own HTTP API.
type native struct{}

func (native) attempt(m *member, o *operation) error {
	a := perform(m, o)
	o.outcome = outcomeOf(o, a)
	if o.outcome == applied || o.outcome == refused {
		if err := o.decode(a); err != nil {
			return fmt.Errorf("%v: %w", a, err)
		}
	} else if a.err == nil && a.status != 503 && a.status != 504 && a.status != 429 {
		return fmt.Errorf("%v", a)
	}
	return nil
}

func perform(m *member, o *operation) answer {
	ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
	defer cancel()
	limit := "?timeout=" + loadTimeout.String()
	path := "/v1/kv/" + o.key + limit
	switch o.kind {
	case opGet:
		return roundTrip(ctx, m, http.MethodGet, path, nil)
	case opList:
		return roundTrip(ctx, m, http.MethodGet, "/v1/kv"+limit+"&prefix="+keyPrefix, nil)
	case opDelete:
		return roundTrip(ctx, m, http.MethodDelete, path, nil)
	case opSwap:
		path += fmt.Sprintf("&if_revision=%d", o.ifRev)
	}
	return roundTrip(ctx, m, http.MethodPut, path, strings.NewReader(o.value))
}

// take records the outcome of an operation.
func (w *worker) take(m *member, o *operation, surprise error) {
	if surprise != nil && len(w.surprises) < maxProblems {
		w.surprises = append(w.surprises, fmt.Sprintf("%v answers %v to %v", m, surprise, o))
	}
	if o.outcome == applied || o.outcome == refused {
		w.count(o)
	}
	w.operations = append(w.operations, o)
}

func (w *worker) count(o *operation) {
	if w.plain {
		w.load.paced.Add(1)
	}
	switch {
	case !o.kind.writes():
		w.load.read.Add(1)
	case o.outcome == applied:
		w.load.acked.Add(1)
	}
	if o.kind == opGet {
		w.lastRev[o.key] = o.pair.ModRevision
	} else if o.kind != opList && o.outcome == applied {
		w.lastRev[o.key] = o.revision
	}
}

// outcomeOf applies the contract: without a definite answer, the outcome is
// unknown.
func outcomeOf(o *operation, a answer) outcome {
	switch {
	case a.err == nil && (a.status == 200 || a.status == 201):
		return applied
	case a.err == nil && a.status == 404 && o.kind == opGet:
		return applied
	case a.err == nil && a.status == 412 && o.kind == opSwap:
		return refused
	case !o.kind.writes() || a.refusedBeforeSent():
		return failed
	case a.err == nil && (a.status == 503 || a.status == 429):
		return failed
	}
	return unknown
}

// decode parses an answer.
func (o *operation) decode(a answer) (err error) {
	o.revision = a.revision()
	switch o.kind {
	case opGet:
		o.found = a.status == 200
		if o.found {
			o.pair.Value = a.body
			_, err = fmt.Sscanf(a.header.Get("ETag"), `"%d"`, &o.pair.ModRevision)
		}
	case opList:
		o.list, err = decodeList(a.body)
	case opDelete:
		var doc struct{ Deleted, Revision uint64 }
		err = json.Unmarshal([]byte(a.body), &doc)
		o.found = doc.Deleted == 1
		err = o.sameRevision(err, doc.Revision)
	case opPut, opSwap:
		var doc struct {
			Revision    uint64
			ModRevision uint64 `json:"mod_revision"`
		}
		err = json.Unmarshal([]byte(a.body), &doc)
		if o.outcome == refused {
			o.nowRev = doc.Revision // of the key, in a problem document
			return err
		}
		o.created = a.status == 201
		if err = o.sameRevision(err, doc.Revision); err == nil {
			err = o.sameRevision(err, doc.ModRevision)
		}
	}
	return err
}

func (o *operation) sameRevision(err error, revision uint64) error {
	if err == nil && revision != o.revision {
		return fmt.Errorf("the body says revision %d, the header %d", revision, o.revision)
	}
	return err
}

// judgedHistory selects the operations of the paced clients for porcupine, and
// only the first ones if there are too many.
func (l *load) judgedHistory() (out []judged) {
	for _, w := range l.workers {
		if !w.plain {
			continue
		}
		for _, o := range w.operations {
			if o.outcome == failed {
				continue
			}
			j := judged{Client: w.id, Kind: o.kind, Key: o.key, Value: o.value, Found: o.found, Known: true, Call: int64(o.call), Return: int64(o.end)}
			if o.kind == opGet {
				j.Value = o.pair.Value
			}
			if o.outcome == unknown {
				j.Known, j.Return = false, openEnd
			}
			out = append(out, j)
		}
	}
	return out
}

// outcomes summarizes the history.
func outcomes(history []*operation) string {
	var counts [opDelete + 1][unknown + 1]int
	for _, o := range history {
		counts[o.kind][o.outcome]++
	}
	var b strings.Builder
	for k := opGet; k <= opDelete; k++ {
		fmt.Fprintf(&b, "%v:", k)
		for out := applied; out <= unknown; out++ {
			if n := counts[k][out]; n > 0 {
				fmt.Fprintf(&b, " %d %v", n, out)
			}
		}
		b.WriteString("; ")
	}
	return strings.TrimSuffix(b.String(), "; ")
}
