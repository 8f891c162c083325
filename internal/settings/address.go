package settings

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/memberurl"
)

// maxSocketPath is the longest path that the kernel accepts for a unix socket:
// sun_path has 108 bytes, with the terminating zero.
const maxSocketPath = 107

const unixScheme = "unix://"

var (
	urlCodec            = codec[string]{parseURL, same}
	memberURLsCodec     = codec[[]string]{listOf(parseMemberURL), joinURLs}
	listenersCodec      = codec[[]string]{listOf(parseListener), joinURLs}
	plainListenersCodec = codec[[]string]{listOf(parsePlainListener), joinURLs}
	hostNamesCodec      = codec[[]string]{parseHostNames, joinURLs}
	membersCodec        = codec[[]Member]{parseMembers, showMembers}
	dialectsCodec       = codec[[]string]{parseDialects, showDialects}
)

// parseURL accepts a TCP address: scheme, host and port, and nothing else. A path
// would be silently ignored, since routes are fixed; a missing port would mean 80,
// which is never meant. Host names are kept in lower case, as in the URLs of members,
// with which they are compared.
func parseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%q is not a URL (for example, %s)", text, DefaultClientURL)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("%q does not begin with http:// or https://", text)
	case u.Hostname() == "" || u.Port() == "":
		return "", fmt.Errorf("%q has no host or no port", text)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", fmt.Errorf("%q has more than a scheme, a host, and a port", text)
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); err != nil {
		return "", fmt.Errorf("%q has a port above 65535", text)
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

// parseMemberURL accepts a URL under which others reach a member. Unlike a
// listener it needs a port that can be dialed.
func parseMemberURL(text string) (string, error) {
	urls, err := memberurl.Normalize([]string{text})
	if err != nil {
		return "", err
	}
	return urls[0], nil
}

// parseListener accepts a TCP address or the absolute path of a unix socket.
func parseListener(text string) (string, error) {
	name, ok := strings.CutPrefix(text, unixScheme)
	switch {
	case !ok:
		return parseURL(text)
	case !path.IsAbs(name) || strings.HasSuffix(name, "/") || strings.ContainsRune(name, 0):
		return "", fmt.Errorf("%q is not the absolute path of a socket (for example, unix:///run/kvd.sock)", text)
	}
	name = path.Clean(name)
	if len(name) > maxSocketPath {
		return "", fmt.Errorf("%q has %d bytes, but the path of a socket may have at most %d", name, len(name), maxSocketPath)
	}
	return unixScheme + name, nil
}

// parsePlainListener accepts a listener without TLS.
func parsePlainListener(text string) (string, error) {
	if strings.HasPrefix(text, "https:") {
		return "", fmt.Errorf("%q: this listener does not support TLS; use http:// on an internal address, or scrape /metrics on --listen-client", text)
	}
	return parseListener(text)
}

// listOf accepts what one accepts, separated by commas, each value once.
func listOf(one func(string) (string, error)) func(string) ([]string, error) {
	return func(text string) ([]string, error) {
		var out []string
		for part := range strings.SplitSeq(text, ",") {
			u, err := one(strings.TrimSpace(part))
			switch {
			case err != nil:
				return nil, err
			case slices.Contains(out, u):
				return nil, fmt.Errorf("%s is listed twice", u)
			case len(out) == limits.MaxMembers:
				return nil, fmt.Errorf("the list has more than %d URLs", limits.MaxMembers)
			}
			out = append(out, u)
		}
		return out, nil
	}
}

// maxHostNames bounds the list of --allowed-hosts.
const maxHostNames = 64

// parseHostNames accepts host names without a port. They are compared in lower case
// and without the dot at the end, and listed so.
func parseHostNames(text string) ([]string, error) {
	var names []string
	for part := range strings.SplitSeq(text, ",") {
		name := strings.ToLower(strings.TrimSuffix(strings.TrimSpace(part), "."))
		switch {
		case name == "" || len(name) > 253 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "":
			return nil, fmt.Errorf("%q is not a host name; write it without scheme and port", part)
		case slices.Contains(names, name):
			return nil, fmt.Errorf("%s is listed twice", name)
		case len(names) == maxHostNames:
			return nil, fmt.Errorf("the list has more than %d names", maxHostNames)
		}
		names = append(names, name)
	}
	return names, nil
}

// Dialects are the older systems whose HTTP a node can serve.
var Dialects = []string{"raftexample", "raftd", "riot"}

// noDialects stands for an empty list: a setting without a value would read like a
// mistake.
const noDialects = "none"

// parseDialects accepts names of Dialects, or noDialects alone.
func parseDialects(text string) ([]string, error) {
	names := []string{}
	if text == noDialects {
		return names, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		name := strings.TrimSpace(part)
		switch {
		case !slices.Contains(Dialects, name):
			return nil, fmt.Errorf("%q is not one of %s, or %s alone", name, strings.Join(Dialects, ", "), noDialects)
		case slices.Contains(names, name):
			return nil, fmt.Errorf("%s is listed twice", name)
		}
		names = append(names, name)
	}
	return names, nil
}

func showDialects(names []string) string {
	if len(names) == 0 {
		return noDialects
	}
	return strings.Join(names, ",")
}

func joinURLs(urls []string) string { return strings.Join(urls, ",") }

// parseMembers accepts URLs, or names with URLs as etcd writes them: all with
// names or none. If some had none, a member could not tell from its own --name
// which position is its own.
func parseMembers(text string) ([]Member, error) {
	var names, urls []string
	for part := range strings.SplitSeq(text, ",") {
		name, u, named := strings.Cut(strings.TrimSpace(part), "=")
		if !named {
			urls = append(urls, name)
			continue
		}
		if slices.Contains(names, name) {
			return nil, fmt.Errorf("member %q is listed twice; each has one peer URL", name)
		}
		names, urls = append(names, name), append(urls, u)
	}
	switch {
	case len(names) == 0:
	case len(names) != len(urls):
		return nil, errors.New("some members have a name (NAME=URL) and others do not")
	case slices.Contains(names, ""):
		return nil, errors.New("the name of a member is empty")
	}
	urls, err := listOf(parseMemberURL)(strings.Join(urls, ","))
	if err != nil {
		return nil, err
	}
	members := make([]Member, len(urls))
	for i, u := range urls {
		members[i].URL = u
		if len(names) > 0 {
			members[i].Name = names[i]
		}
	}
	return members, nil
}

func showMembers(members []Member) string {
	parts := make([]string, len(members))
	for i, m := range members {
		parts[i] = m.URL
		if m.Name != "" {
			parts[i] = m.Name + "=" + m.URL
		}
	}
	return strings.Join(parts, ",")
}

// storeJoin accepts raftexample's switch or URLs.
func storeJoin(s *Settings, text string) error {
	if on, err := strconv.ParseBool(text); err == nil {
		s.Join = on
		return nil
	}
	urls, err := listOf(parseMemberURL)(text)
	s.JoinURLs = urls
	return err
}

func showJoin(s *Settings) string {
	if len(s.JoinURLs) > 0 {
		return joinURLs(s.JoinURLs)
	}
	return strconv.FormatBool(s.Join)
}

// IsUnix returns the path of a listener if it is a unix socket.
func IsUnix(listener string) (path string, ok bool) {
	return strings.CutPrefix(listener, unixScheme)
}

// IsWildcard reports whether the host of the URL stands for all addresses of the
// machine. A node can listen there, but nobody can connect to it.
func IsWildcard(text string) bool {
	ip, err := netip.ParseAddr(hostOf(text).Hostname())
	return err == nil && ip.Unmap().IsUnspecified()
}

func isHTTPS(text string) bool { return strings.HasPrefix(text, "https://") }

// hostOf parses a URL that parseURL accepted.
func hostOf(text string) *url.URL {
	u, err := url.Parse(text)
	if err != nil {
		return &url.URL{}
	}
	return u
}
