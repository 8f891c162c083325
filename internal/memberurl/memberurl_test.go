package memberurl

import (
	"slices"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	good := []string{
		"http://127.0.0.1:2380", "https://kvd-1.example.com:2380", "http://[::1]:2380", "http://node_1:1",
		"HTTP://node:65535", "http://10.0.0.1:2380", "http://0.0.0.0:2380", "http://a.b.c.:80", "http://node1:80",
		"http://[fd00::1]:2380", "http://1.example:80",
	}
	for _, u := range good {
		if err := Validate([]string{u}); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
	bad := []string{
		"", "node:2380", "//node:2380", "unix:///x", "unix://localhost:1", "ftp://node:1", "http:node:1", "http://:2380",
		"http://node", "http://node:", "http://node:0", "http://node:65536", "http://node:x", "http://user@node:1",
		"http://user:secret@node:1", "http://node:1/", "http://node:1/x", "http://node:1?", "http://node:1?a=b",
		"http://node:1#", "http://node:1#x", "http://169.254.169.254:80", "http://[fe80::1]:80", "http://[fe80::1%25eth0]:80",
		"http://[::ffff:169.254.1.1]:80", "http://2852039166:80", "http://0xa9fea9fe:80", "http://169.254.1:80",
		"http://0251.0376.1.1:80", "http://169.254.1.1.:80", "http://no de:1", " http://node:1", "http://node:1\n",
		"http://n\u00f6de:1", "http://n%c3%b6de:1", "http://169.254.169.%EF%BC%92%EF%BC%95%EF%BC%94:80", "http://a,b:1", "http://a\"b:1", "http://[::1:80", "http://node:1\x00", "http://" + string(make([]byte, 600)) + ":1",
	}
	for _, u := range bad {
		if err := Validate([]string{"http://node:1", u}); err == nil {
			t.Errorf("%q is accepted", u)
		}
	}
	if Validate(nil) == nil || Validate(slices.Repeat([]string{"http://node:1"}, maxURLs+1)) == nil {
		t.Error("the number of URLs is not checked")
	}
	err := Validate([]string{"http://user:secret@node:1", "ftp://other:1"})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"@node:1", "ftp://other:1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the message does not name %s: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the message tells the password: %v", err)
	}
}

func TestNormalize(t *testing.T) {
	got, err := Normalize([]string{"http://node:1/", "HTTPS://Node:2"})
	if err != nil || !slices.Equal(got, []string{"http://node:1", "https://node:2"}) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, u := range []string{"http://node:1//", "http://node:1/x", "http://node/", "/", ""} {
		if got, err := Normalize([]string{u}); err == nil {
			t.Errorf("%q becomes %q", u, got)
		}
	}
	if _, err := Normalize(nil); err == nil {
		t.Error("no URL is accepted")
	}
}

func TestOnThisMachine(t *testing.T) {
	for u, want := range map[string]bool{
		"http://localhost:1": true, "http://LocalHost:1": true, "http://127.0.0.1:1": true, "http://127.9.9.9:1": true, "http://[::1]:1": true, "http://[::ffff:127.0.0.1]:1": true,
		"http://10.0.0.1:1": false, "http://0.0.0.0:1": false, "http://localhost.example:1": false, "http://node:1": false, "%": false,
	} {
		if got := OnThisMachine(u); got != want {
			t.Errorf("%s: %v", u, got)
		}
	}
}
