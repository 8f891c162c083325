package frontdoor

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/settings"
)

// A node that ends by itself, for example because its settings contradict its directory,
// cuts the door without having sent anybody away.
func TestEtcdDoorIsCut(t *testing.T) {
	s := &settings.Settings{ListenClient: []string{"http://127.0.0.1:0"}, AdvertiseClient: []string{""}, ListenEtcd: []string{"http://127.0.0.1:0"}, AdvertiseEtcd: []string{""}, MaxConnections: 10}
	d, err := Listen(s, nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e, err := d.ListenEtcd(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	address := e.listeners[0].Addr().String()
	failed := e.Serve(etcdapi.New(etcdapi.Options{}), http.NotFoundHandler())
	idle, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	e.Cut(patience)
	select {
	case err := <-failed:
		t.Errorf("the door failed: %v", err)
	default:
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(address, "http://")); err == nil {
		_ = c.Close()
		t.Error("the door still accepts")
	}
}
