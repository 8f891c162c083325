package loadgen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestQuantiles holds the histogram against sorted latencies.
func TestQuantiles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	h, half := NewHistogram(), NewHistogram()
	var all []time.Duration
	for i := range 20_000 {
		d := time.Duration(random.ExpFloat64() * float64(time.Millisecond) * float64(1+i%100))
		if all = append(all, d); i%2 == 0 {
			h.Record(d)
		} else {
			half.Record(d)
		}
	}
	h.Merge(half)
	slices.Sort(all)
	within := func(name string, got, want time.Duration) {
		t.Helper()
		if got < want || float64(got) > 1.01*float64(want) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		within(fmt.Sprint("quantile ", q), h.Quantile(q), all[int(q*float64(len(all)))-1])
	}
	within("the maximum", h.Max(), all[len(all)-1])
	if h.Count() != uint64(len(all)) {
		t.Errorf("%d latencies, want %d", h.Count(), len(all))
	}
	for _, d := range []time.Duration{-1, 0, 1, 255, 256, 257, 1 << 40, maxLatency, 1<<63 - 1} {
		one := NewHistogram()
		one.Record(d)
		d = min(max(0, d), maxLatency)
		if one.Count() != 1 {
			t.Errorf("%v is not counted", d)
		}
		within("one latency", one.Quantile(0.5), d)
	}
	if none := NewHistogram(); none.Quantile(0.99) != 0 || none.Max() != 0 || none.Mean() != 0 {
		t.Errorf("an empty histogram has the quantile %v, the maximum %v and the mean %v", none.Quantile(0.99), none.Max(), none.Mean())
	}
	if size := h.counts.ByteSize(); size > 40<<10 {
		t.Errorf("a histogram takes %d bytes", size)
	}
}

// scripted serves connections with a fixed text for each request; nil closes.
func scripted(t *testing.T, answer func(request int) []string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var requests atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					for line := "x"; line != "\r\n"; {
						if line, err = r.ReadString('\n'); err != nil {
							return
						}
					}
					parts := answer(int(requests.Add(1)))
					if parts == nil {
						return
					}
					for _, part := range parts {
						if _, err := io.WriteString(c, part); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestAnswers reads whole and split responses, errors and nonsense.
func TestAnswers(t *testing.T) {
	problem := `{"title":"x","code":"no_leader"}`
	for _, c := range []struct {
		parts []string
		code  string
		err   error
	}{
		{parts: []string{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"}},
		{parts: []string{"HTTP/1.1 204 No Content\r\n\r\n"}},
		{parts: []string{"HTTP/1.1 2", "00 OK\r\nContent-Len", "gth: 5\r", "\n\r\nhe", "llo"}},
		{parts: []string{fmt.Sprintf("HTTP/1.1 503 X\r\nContent-Length: %d\r\n\r\n%s", len(problem), problem)}, code: "503 no_leader"},
		{parts: []string{"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\nno"}, code: "404"},
		{parts: []string{"HTTP/1.1 200 OK\r\n\r\n"}, err: errAnswer},
		{parts: []string{"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"}, err: errAnswer},
		{parts: []string{"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n"}, err: errAnswer},
		{parts: []string{"HTTP/1.1 100 Continue\r\n\r\n"}, err: errAnswer},
		{parts: []string{"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Length: 20\r\n\r\n{\"code\":\"too_large\"}"}, code: "413 too_large", err: ErrClosing},
		{parts: []string{"nonsense of some length\r\n"}, err: errAnswer},
		{parts: []string{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"}, err: ErrClosing},
	} {
		h, err := Dial(scripted(t, func(int) []string { return c.parts }))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second finds nothing left of the first
			code, err := h.Get([]byte("a"), true)
			if code != c.code || !errors.Is(err, c.err) {
				t.Errorf("%q: %q %v", c.parts, code, err)
			}
			if err != nil {
				break
			}
		}
		h.Close()
	}
}

// TestRequest returns the body of a success and the code of a refusal, in turn.
func TestRequest(t *testing.T) {
	problem := `{"code":"lock_held"}`
	h, err := Dial(scripted(t, func(request int) []string {
		switch request {
		case 2:
			return []string{fmt.Sprintf("HTTP/1.1 409 X\r\nContent-Length: %d\r\n\r\n%s", len(problem), problem)}
		case 4:
			return []string{fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", maxAnswerBytes+1)}
		}
		return []string{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "a", "b" + fmt.Sprint(request)}
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, want := range []struct{ answer, code string }{{answer: "ab1"}, {code: "409 lock_held"}, {answer: "ab3"}} {
		// scripted reads header fields only, so there is no body here.
		answer, code, err := h.Request("POST", "/v1/locks/a?wait=1s", []byte("X-Y: z\r\n"), nil)
		if string(answer) != want.answer || code != want.code || err != nil {
			t.Errorf("%q %q %v, want %q", answer, code, err, want)
		}
	}
	if _, _, err := h.Request("GET", "/", nil, nil); !errors.Is(err, errAnswer) {
		t.Errorf("a body over the limit: %v", err)
	}
}

// TestAuthorize: credentials are in each request, in its header, and once.
func TestAuthorize(t *testing.T) {
	for credentials, want := range map[string]string{"": "", "Bearer t": "Authorization: Bearer t\r\n"} {
		conn := &recorded{canned: canned{answer: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}}
		h := New(conn, "x")
		h.Authorize(credentials)
		_, putErr := h.Put([]byte("a"), []byte("v"))
		_, getErr := h.Get([]byte("a"), true)
		_, _, requestErr := h.Request("POST", "/v1/txn", []byte("X-Y: z\r\n"), []byte("{}"))
		if err := errors.Join(putErr, getErr, requestErr); err != nil {
			t.Fatal(err)
		}
		sent := "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\n" + want + "Content-Length: 1\r\n\r\nv" +
			"GET /v1/kv/a?consistency=stale HTTP/1.1\r\nHost: x\r\n" + want + "\r\n" +
			"POST /v1/txn HTTP/1.1\r\nHost: x\r\n" + want + "X-Y: z\r\nContent-Length: 2\r\n\r\n{}"
		if string(conn.sent) != sent {
			t.Errorf("with %q:\n%s\nwant\n%s", credentials, conn.sent, sent)
		}
	}
}

// TestRunCounts: errors are counted separately, broken connections are replaced,
// and the last response of a connection counts.
func TestRunCounts(t *testing.T) {
	address := scripted(t, func(request int) []string {
		switch {
		case request%10 == 3:
			return []string{"HTTP/1.1 429 X\r\nContent-Length: 21\r\n\r\n{\"code\":\"overloaded\"}"}
		case request%10 == 7:
			return nil
		case request%10 == 5:
			return []string{"HTTP/1.1 503 X\r\nContent-Length: 19\r\nConnection: close\r\n\r\n{\"code\":\"stopping\"}"}
		}
		return []string{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}
	})
	l := &Load{Workers: 3, Count: 100, Open: func(int) (Op, func(), error) {
		h, err := Dial(address)
		if err != nil {
			return nil, nil, err
		}
		keys := RandomKeys(10, 1)
		return func(context.Context) (string, error) { return h.Get(keys.Next(), false) }, h.Close, nil
	}}
	r, err := l.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Ops < 100 || r.Ops > 103 || r.Errors["429 overloaded"] < 5 || r.Errors["503 stopping"] < 5 || r.Errors["connection"] < 5 || r.Errors["connection"] > 20 || r.Latency.Count() != r.Ops {
		t.Errorf("%d operations, errors %v", r.Ops, r.Errors)
	}
}

func TestRunWithoutService(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	tries := 0
	l := &Load{Workers: 1, Count: 1, Open: func(int) (Op, func(), error) {
		if tries++; tries == 3 {
			cancel()
		}
		return nil, nil, errors.New("refused")
	}}
	if _, err := l.Run(ctx); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}

// TestRunGivesUp: a load in which nothing succeeds ends with ErrNoProgress.
func TestRunGivesUp(t *testing.T) {
	l := &Load{Workers: 2, Count: 10, Patience: 20 * time.Millisecond, Open: func(int) (Op, func(), error) {
		return func(context.Context) (string, error) { return "404 key_not_found", nil }, func() {}, nil
	}}
	r, err := l.Run(context.Background())
	if !errors.Is(err, ErrNoProgress) || r.Ops != 0 || r.Errors["404 key_not_found"] == 0 {
		t.Errorf("%d operations, errors %v: %v", r.Ops, r.Errors, err)
	}
}

// TestRunInterrupted returns what was measured, and the context's error.
func TestRunInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	l := &Load{Workers: 1, Duration: time.Hour, Open: func(int) (Op, func(), error) {
		return func(context.Context) (string, error) {
			if calls++; calls == 4 {
				cancel()
			}
			return "", nil
		}, func() {}, nil
	}}
	if r, err := l.Run(ctx); !errors.Is(err, context.Canceled) || r.Ops != 3 {
		t.Errorf("%d operations: %v", r.Ops, err)
	}
}

// canned is a connection on which the response is always there already.
type canned struct {
	net.Conn
	answer string
}

func (c *canned) Write(b []byte) (int, error) { return len(b), nil }
func (c *canned) Read(b []byte) (int, error)  { return copy(b, c.answer), nil }
func (c *canned) SetDeadline(time.Time) error { return nil }

// recorded keeps all that is sent on it.
type recorded struct {
	canned
	sent []byte
}

func (c *recorded) Write(b []byte) (int, error) {
	c.sent = append(c.sent, b...)
	return len(b), nil
}

// TestNoAllocation: the load causes no garbage collection on the machine that is
// measured.
func TestNoAllocation(t *testing.T) {
	conn := &canned{answer: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"}
	h := New(conn, "x")
	h.Authorize("Bearer t")
	keys, value := RandomKeys(1000, 1), make([]byte, 256)
	n := testing.AllocsPerRun(1000, func() {
		if code, err := h.Put(keys.Next(), value); code != "" || err != nil {
			t.Fatal(code, err)
		}
		if code, err := h.Get(keys.Next(), true); code != "" || err != nil {
			t.Fatal(code, err)
		}
		if answer, code, err := h.Request("POST", "/v1/txn", nil, value); len(answer) != 5 || code != "" || err != nil {
			t.Fatal(code, err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for a put, a get and a transaction", n)
	}
}

func TestKeys(t *testing.T) {
	k := SequentialKeys(3, 1, 2)
	for _, want := range []string{"key-00000001", "key-00000000", "key-00000002", "key-00000001"} {
		if got := string(k.Next()); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for n, want := range map[uint64]string{0: "key-00000000", 9: "key-00000009", 10: "key-00000010", 12345678: "key-12345678", 123456789: "key-123456789"} {
		if got := string(AppendKey(nil, n)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if a, b := RandomKeys(1000, 7), RandomKeys(1000, 7); string(a.Next()) != string(b.Next()) {
		t.Error("the same seed gives other keys")
	}
}
