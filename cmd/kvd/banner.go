package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/settings"
)

// greet writes the banner if a person has started the node: if standard error
// is a terminal and the log has the format for people. It goes to the sink of
// the log, not to the terminal, which may be stopped (Ctrl-S).
func greet(s *settings.Settings, v api.Version, stderr io.Writer, sink io.Writer) {
	if logsink.IsTerminal(stderr) && logsink.ForPeople(s.LogFormat, stderr) {
		_, _ = io.WriteString(sink, banner(s, v)) // the sink takes everything
	}
}

// banner tells a person in a few lines where the data is and what to type.
func banner(s *settings.Settings, v api.Version) string {
	dir := s.DataDir
	if full, err := filepath.Abs(dir); err == nil {
		dir = full
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nkvd %s, member %d (%s)\n\n", v.Version, s.ID, s.Name)
	fmt.Fprintf(&b, "  data     %s\n", dir)
	fmt.Fprintf(&b, "  clients  %s\n", strings.Join(s.ListenClient, ", "))
	if page := pageURL(s); page != "" {
		fmt.Fprintf(&b, "  page     %s\n", page)
	}
	fmt.Fprintf(&b, "  try      %s\n\n", curl(s))
	return b.String()
}

// pageURL returns where a browser finds the web page, or "" if it finds none.
func pageURL(s *settings.Settings) string {
	for _, listener := range s.ListenClient {
		if _, unix := settings.IsUnix(listener); !unix && s.UI != "off" {
			return reachable(listener) + "/ui/"
		}
	}
	return ""
}

// curl returns a command that writes a key to this node. A listener without
// TLS comes first, since it needs the shortest one.
func curl(s *settings.Settings) string {
	const key, body = "/greeting", " -XPUT -d hello"
	secure := ""
	for _, listener := range s.ListenClient {
		path, unix := settings.IsUnix(listener)
		switch {
		case unix:
			return "curl --unix-socket " + path + " http://localhost" + key + body
		case strings.HasPrefix(listener, "https:"):
			secure = reachable(listener)
		default:
			return "curl " + reachable(listener) + key + body
		}
	}
	command := "curl --cacert CA.pem "
	if s.TLSClientAuth == "require" {
		command += "--cert CLIENT.pem --key CLIENT-key.pem "
	}
	return command + secure + key + body
}
