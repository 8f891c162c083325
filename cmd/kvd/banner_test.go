package main

import (
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/settings"
)

func TestBanner(t *testing.T) {
	for _, c := range []struct {
		listen string
		auth   string
		want   string
	}{
		{"http://127.0.0.1:12380", "", "curl http://127.0.0.1:12380/greeting -XPUT -d hello\n"},
		{"http://0.0.0.0:80", "", "curl http://127.0.0.1:80/greeting -XPUT -d hello\n"},
		{"https://n1:1,http://127.0.0.1:2", "require", "curl http://127.0.0.1:2/greeting -XPUT -d hello\n"},
		{"unix:///run/kvd.sock", "", "curl --unix-socket /run/kvd.sock http://localhost/greeting -XPUT -d hello\n"},
		{"https://n1:1", "", "curl --cacert CA.pem https://n1:1/greeting -XPUT -d hello\n"},
		{"https://n1:1", "require", "curl --cacert CA.pem --cert CLIENT.pem --key CLIENT-key.pem https://n1:1/greeting -XPUT -d hello\n"},
	} {
		s := &settings.Settings{ID: 3, Name: "c", DataDir: "/data/3", ListenClient: strings.Split(c.listen, ","), TLSClientAuth: c.auth}
		got := banner(s, api.Version{Version: "1.2.3"})
		for _, want := range []string{"kvd 1.2.3, member 3 (c)\n", "data     /data/3\n", strings.Join(s.ListenClient, ", "), c.want} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: the banner lacks %q:%s", c.listen, want, got)
			}
		}
	}
}
