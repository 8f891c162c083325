package main

import (
	"slices"
	"testing"
)

func TestTranslate(t *testing.T) {
	given, err := parse([]string{"--name=n1", "--listen-client-urls", "http://localhost:1,https://localhost:1", "--advertise-client-urls=http://localhost:1",
		"--listen-client-http-urls=http://localhost:5", "--data-dir=/d", "--client-cert-auth", "--auto-tls", "-strict-reconfig-check=false",
		"--corrupt-check-time=1s", "--peer-auto-tls"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--name=n1", "--data-dir=/d", "--client-cert-auth=true", "--strict-reconfig-check=false",
		"--listen-etcd=http://localhost:1,https://localhost:1,http://localhost:5", "--listen-client=unix://" + socket("/d"), "--advertise-etcd=http://localhost:1",
		"--cert-file=/bin/certs/member1.pem", "--key-file=/bin/certs/member1-key.pem", "--peer-cert-file=/bin/certs/member1.pem",
		"--peer-key-file=/bin/certs/member1-key.pem", "--peer-trusted-ca-file=/bin/certs/ca.pem", "--log-format=json"}
	if got := translate(given, "/bin"); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, args := range [][]string{{"name"}, {"--name"}, {"--"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
