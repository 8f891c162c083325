package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// TestEachRequestTakesEffectOnce has clients that lose most of their answers and repeat
// each request under its Idempotency-Key, on a node chosen anew, until one answer
// arrives, while the leader is killed again and again. The counter must end at the number
// of requests, no two of which may be told the same sum, and the text must have one mark
// of each.
func TestEachRequestTakesEffectOnce(t *testing.T) {
	kills := 4
	if runSize != "" {
		kills = 30
	}
	r := &onceRun{t: t, cluster: newCluster(t, 3, quick...), sums: make(map[string]string)}
	seeds := seeded(t)
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for id := range 8 {
		random := rand.New(rand.NewPCG(seeds.Uint64(), 0))
		clients.Go(func() { r.client(id, random, stop) })
	}
	for range kills {
		r.awaitRequests(60)
		leader := r.cluster.leader()
		leader.kill()
		r.awaitRequests(20)
		restart(leader)
	}
	close(stop)
	clients.Wait()
	r.judge()
}

// onceRun is one run of the test. Its clients share nothing but what they report here.
type onceRun struct {
	t       *testing.T
	cluster *cluster
	done    atomic.Int64 // requests that were answered
	sent    atomic.Int64 // those and their repeats
	mu      sync.Mutex
	sums    map[string]string // the request that was told a sum
	marks   []string          // what was appended
}

func (r *onceRun) client(id int, random *rand.Rand, stop chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprintf("%d-%d", id, n)
		if n%4 == 3 {
			r.untilAnswered(random, name, "/v1/kv/text?append", name+",")
			r.mu.Lock()
			r.marks = append(r.marks, name)
			r.mu.Unlock()
			continue
		}
		r.noteSum(name, r.untilAnswered(random, name, "/v1/kv/counter?incr=1", ""))
	}
}

// untilAnswered sends a request until an answer is kept, and returns it.
func (r *onceRun) untilAnswered(random *rand.Rand, key, path, body string) answer {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		m := r.cluster.nodes[random.IntN(len(r.cluster.nodes))]
		patience := requestLimit
		if random.IntN(2) == 0 { // a client that leaves at any moment
			patience = time.Duration(random.IntN(4000)) * time.Microsecond
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		a := roundTrip(ctx, m, "POST", path, strings.NewReader(body), "Idempotency-Key", key)
		cancel()
		r.sent.Add(1)
		switch {
		case a.err != nil, a.status >= 500, a.status == 429, random.IntN(2) == 0:
			continue // lost
		case a.status != 200 && a.status != 201:
			r.t.Errorf("request %s: %v", key, a)
		}
		r.done.Add(1)
		return a
	}
	r.t.Errorf("request %s was never answered", key)
	return answer{}
}

func (r *onceRun) noteSum(name string, a answer) {
	var doc struct{ Value string }
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
		r.t.Errorf("request %s: %v in %v", name, err, a)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if other, taken := r.sums[doc.Value]; taken {
		r.t.Errorf("requests %s and %s were both told the sum %s", other, name, doc.Value)
	}
	r.sums[doc.Value] = name
}

// awaitRequests waits until n further requests have been answered.
func (r *onceRun) awaitRequests(n int64) {
	r.t.Helper()
	want := r.done.Load() + n
	eventually(r.t, fmt.Sprintf("%d more requests are answered", n), func() error {
		if left := want - r.done.Load(); left > 0 {
			return fmt.Errorf("%d to go", left)
		}
		return nil
	})
}

func (r *onceRun) judge() {
	t := r.t
	for _, m := range r.cluster.live() {
		if got, want := r.value(m, "counter"), strconv.Itoa(len(r.sums)); got != want {
			t.Errorf("%v has the sum %s after %s requests", m, got, want)
		}
		text := r.value(m, "text")
		for _, mark := range r.marks {
			if n := strings.Count(","+text, ","+mark+","); n != 1 {
				t.Errorf("%v has %d times what request %s appended", m, n, mark)
			}
		}
		if n := strings.Count(text, ","); n != len(r.marks) {
			t.Errorf("%v has %d marks of %d requests", m, n, len(r.marks))
		}
	}
	proof.Judged(t, int(r.done.Load()))
	repeats := r.sent.Load() - r.done.Load()
	t.Logf("%d requests, %d repeats", r.done.Load(), repeats)
	if repeats < r.done.Load()/2 {
		t.Errorf("only %d repeats of %d requests", repeats, r.done.Load())
	}
}

func (r *onceRun) value(m *member, key string) (value string) {
	eventually(r.t, "reading "+key, func() error {
		a := get(m, "/v1/kv/"+key)
		if value = a.body; a.status != 200 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	return value
}
