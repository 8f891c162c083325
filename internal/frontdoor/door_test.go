package frontdoor

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/settings"
)

const patience = 30 * time.Second

// keptConn is a client connection that is used for one request after another.
type keptConn struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dialURL(t *testing.T, url string) *keptConn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &keptConn{t: t, Conn: c, r: bufio.NewReader(c)}
}

// get returns the status of a request, and whether the connection ends with
// it.
func (c *keptConn) get(path string) (status int, last bool) {
	c.t.Helper()
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, resp.Close
}

// TestDoor takes a Door through all its states, with two connections that stay
// open and one that never sends anything.
func TestDoor(t *testing.T) {
	s := &settings.Settings{
		ListenClient: []string{"http://127.0.0.1:0"}, AdvertiseClient: []string{"http://127.0.0.1:0"},
		ListenMetrics: []string{"http://127.0.0.1:0"}, MaxConnections: 10,
	}
	d, err := Listen(s, nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	side, err := ListenSide(s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.ListenClient, s.AdvertiseClient) || strings.HasSuffix(s.ListenClient[0], ":0") || strings.HasSuffix(s.ListenMetrics[0], ":0") {
		t.Errorf("the ports are not in the settings: %v %v %v", s.ListenClient, s.AdvertiseClient, s.ListenMetrics)
	}
	failed := d.Serve(httpapi.Options{Health: startingNode{}, Replicator: freshNode{}})
	side.Open(d, false)
	dialURL(t, s.ListenClient[0]) // sends nothing
	client, other, probe := dialURL(t, s.ListenClient[0]), dialURL(t, s.ListenClient[0]), dialURL(t, s.ListenMetrics[0])
	expect := func(state string, c *keptConn, path string, want int, wantLast bool) {
		t.Helper()
		if status, last := c.get(path); status != want || last != wantLast {
			t.Errorf("%s: GET %s: %d, the last of its connection: %v; want %d, %v", state, path, status, last, want, wantLast)
		}
	}
	expect("starting", client, "/v1/kv/k", 503, false)
	expect("starting", other, "/livez", 200, false)
	expect("starting", probe, "/livez", 200, false)
	d.Open(oneKey{})
	expect("open", client, "/v1/kv/k", 200, false)
	expect("open", probe, "/v1/kv/k", 404, false)
	if err := d.SendAway(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(s.ListenClient[0], "http://")); err == nil {
		_ = c.Close()
		t.Error("a connection was accepted after SendAway")
	}
	expect("sent away", client, "/v1/kv/k", 200, true)
	d.Shut()
	expect("shut", other, "/v1/kv/k", 503, true)
	expect("shut", probe, "/readyz", 503, true)
	d.Finish(patience)
	d.Cut(patience)
	if err := <-failed; !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("the listener failed: %v", err)
	}
	if err := side.Close(); err != nil {
		t.Error(err)
	}
	if n := d.limit.open.Taken(); n != 0 {
		t.Errorf("%d connections still count", n)
	}
}

// TestPortInUse: the error names the address in the form of the setting, and
// the setting, once.
func TestPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	url := "http://" + taken.Addr().String()
	for origin, given := range map[string]settings.Layer{
		"(the default; choose another with --port or --listen-client)": nil,
		"(set by the flag)": {"listen-client": {Text: url, Origin: "the flag"}},
	} {
		_, err = Listen(&settings.Settings{ListenClient: []string{url}, Given: given}, nil, zap.NewNop())
		if want := "listen on " + url + " " + origin + ": bind: address already in use"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
