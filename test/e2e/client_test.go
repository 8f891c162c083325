package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// httpClient is shared by all plain requests. It follows no redirects, because
// kvd never redirects data requests.
var httpClient = &http.Client{
	Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
		IdleConnTimeout:     10 * time.Second,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// answer is the response to a request, or the error instead of one.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	body := a.body
	if len(body) > 300 {
		body = fmt.Sprintf("%.300s… (%d bytes)", body, len(body))
	}
	return fmt.Sprintf("%d %q", a.status, body)
}

// code returns the stable code of a problem document.
func (a answer) code() string {
	var p struct{ Code string }
	if a.err != nil || json.Unmarshal([]byte(a.body), &p) != nil {
		return ""
	}
	return p.Code
}

// revision returns the revision at which the answer was computed, or 0 if it
// names none.
func (a answer) revision() uint64 {
	n, _ := strconv.ParseUint(a.header.Get("Kvd-Revision"), 10, 64)
	return n
}

// refusedBeforeSent reports whether no byte of the request can have arrived.
func (a answer) refusedBeforeSent() bool {
	var op *net.OpError
	return errors.As(a.err, &op) && op.Op == "dial"
}

// roundTrip sends one request; the path is already escaped.
func roundTrip(ctx context.Context, m *member, method, path string, body io.Reader, header ...string) answer {
	req, err := http.NewRequestWithContext(ctx, method, m.url()+path, body)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{status: resp.StatusCode, header: resp.Header, err: fmt.Errorf("read the answer: %w", err)}
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: string(data)}
}

// requestLimit exceeds every timeout that the tests request from kvd.
const requestLimit = 30 * time.Second

// send makes a request with headers given as name, value, ….
func send(m *member, method, path, body string, header ...string) answer {
	return sendFrom(m, method, path, strings.NewReader(body), header...)
}

func sendFrom(m *member, method, path string, body io.Reader, header ...string) answer {
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	return roundTrip(ctx, m, method, path, body, header...)
}

func get(m *member, path string, header ...string) answer {
	return sendFrom(m, http.MethodGet, path, nil, header...)
}

// put stores a value and fails the test unless it is acknowledged. It retries
// if kvd says that nothing was applied, because there may be no leader for a
// moment.
func put(t testing.TB, m *member, key, value string) uint64 {
	t.Helper()
	var a answer
	eventually(t, "put through "+m.String(), func() error {
		if a = send(m, http.MethodPut, "/v1/kv/"+key, value); a.status == 503 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	if a.status != 200 && a.status != 201 {
		t.Fatalf("put through %v: %v", m, a)
	}
	return a.revision()
}

// expectValue fails the test unless a linearizable read gives the value.
func expectValue(t testing.TB, m *member, key, value string) {
	t.Helper()
	var a answer
	eventually(t, "read from "+m.String(), func() error {
		if a = get(m, "/v1/kv/"+key); a.err != nil || a.status == 503 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	if a.status != 200 || a.body != value {
		t.Fatalf("%v answers %v for a key whose value is %q", m, a, abbreviate(value))
	}
}

func abbreviate(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("%s… (%d bytes)", s[:60], len(s))
	}
	return s
}

func expectStatus(t testing.TB, a answer, status int) {
	t.Helper()
	if a.err != nil || a.status != status {
		t.Fatalf("the answer is %v, want %d", a, status)
	}
}

// memberStatus is the part of /v1/status that the tests examine.
type memberStatus struct {
	ID                uint64 `json:"id"`
	Role              string `json:"role"`
	Term              uint64 `json:"term"`
	Leader            uint64 `json:"leader"`
	Commit            uint64 `json:"commit"`
	Applied           uint64 `json:"applied"`
	StateHash         string `json:"state_hash"`
	Revision          uint64 `json:"revision"`
	Keys              uint64 `json:"keys"`
	LogSizeBytes      int64  `json:"log_size_bytes"`
	StoreSizeBytes    int64  `json:"store_size_bytes"`
	SnapshotSizeBytes int64  `json:"snapshot_size_bytes"`
}

func (m *member) status() (memberStatus, error) {
	var st memberStatus
	return st, m.getJSON("/v1/status", &st)
}

type memberInfo struct {
	ID       uint64   `json:"id"`
	PeerURLs []string `json:"peer_urls"`
	Learner  bool     `json:"learner"`
	Role     string   `json:"role"`
}

func (m *member) members() ([]memberInfo, error) {
	var out struct {
		Members []memberInfo `json:"members"`
	}
	return out.Members, m.getJSON("/v1/members", &out)
}

// getJSON reads a document. Its errors may be temporary.
func (m *member) getJSON(path string, into any) error {
	a := get(m, path)
	if a.err != nil || a.status != 200 {
		return fmt.Errorf("GET %s: %v", path, a)
	}
	return json.Unmarshal([]byte(a.body), into)
}

// curl runs the real curl and returns its output.
func curl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := tryCurl(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryCurl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	requireTool(t, "curl")
	cmd := exec.Command("curl", append([]string{"--silent", "--show-error", "--max-time", "30"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
	}
	return string(out), nil
}

// requireTool skips the test if the machine lacks a program that a user of the
// walk-through would have.
func requireTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("NOT TESTED: this machine has no %s: %v", name, err)
	}
}
