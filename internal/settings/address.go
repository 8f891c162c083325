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
)

// maxSocketPath is what the kernel takes as the path of a unix socket.
const maxSocketPath = 107

const unixScheme = "unix://"

var (
	urlCodec            = codec[string]{parseURL, same}
	urlsCodec           = codec[[]string]{listOf(parseURL), joinURLs}
	listenersCodec      = codec[[]string]{listOf(parseListener), joinURLs}
	plainListenersCodec = codec[[]string]{listOf(parsePlainListener), joinURLs}
	membersCodec        = codec[[]Member]{parseMembers, showMembers}
)

// parseURL takes a TCP address: scheme, host and port, nothing else.
func parseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%q is no URL such as %s", text, DefaultClientURL)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("%q begins with neither http:// nor https://", text)
	case u.Hostname() == "" || u.Port() == "":
		return "", fmt.Errorf("%q lacks the host or the port", text)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", fmt.Errorf("%q has more than scheme, host and port", text)
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); err != nil {
		return "", fmt.Errorf("%q has a port beyond 65535", text)
	}
	return u.Scheme + "://" + u.Host, nil
}

// parseListener takes a TCP address, or a unix socket by its absolute path.
func parseListener(text string) (string, error) {
	name, ok := strings.CutPrefix(text, unixScheme)
	switch {
	case !ok:
		return parseURL(text)
	case !path.IsAbs(name) || strings.HasSuffix(name, "/") || strings.ContainsRune(name, 0):
		return "", fmt.Errorf("%q is no absolute path of a socket such as unix:///run/kvd.sock", text)
	}
	name = path.Clean(name)
	if len(name) > maxSocketPath {
		return "", fmt.Errorf("%q is %d bytes long; the system takes at most %d in the path of a socket", name, len(name), maxSocketPath)
	}
	return unixScheme + name, nil
}

// parsePlainListener takes a listener without TLS.
func parsePlainListener(text string) (string, error) {
	if strings.HasPrefix(text, "https:") {
		return "", fmt.Errorf("%q: this listener is without TLS; use http:// on an inner address, or https:// with --listen-client, which serves /metrics too", text)
	}
	return parseListener(text)
}

// listOf takes what one takes, separated by commas, each only once.
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

func joinURLs(urls []string) string { return strings.Join(urls, ",") }

// parseMembers takes URLs, or names and URLs as etcd writes them: all with
// names or none, so that the names are equally known to all members.
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
		return nil, errors.New("some members have a name (NAME=URL) and others have none")
	case slices.Contains(names, ""):
		return nil, errors.New("a member's name is empty")
	}
	urls, err := listOf(parseURL)(strings.Join(urls, ","))
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

// storeJoin takes raftexample's switch or URLs.
func storeJoin(s *Settings, text string) error {
	if on, err := strconv.ParseBool(text); err == nil {
		s.Join = on
		return nil
	}
	urls, err := listOf(parseURL)(text)
	s.JoinURLs = urls
	return err
}

func showJoin(s *Settings) string {
	if len(s.JoinURLs) > 0 {
		return joinURLs(s.JoinURLs)
	}
	return strconv.FormatBool(s.Join)
}

// IsUnix returns the path of a listener that is a unix socket.
func IsUnix(listener string) (path string, ok bool) {
	return strings.CutPrefix(listener, unixScheme)
}

// IsWildcard reports whether the URL's host stands for all addresses of the
// machine, which is no address to connect to.
func IsWildcard(text string) bool {
	ip, err := netip.ParseAddr(hostOf(text).Hostname())
	return err == nil && ip.Unmap().IsUnspecified()
}

// isLoopback reports whether only this machine can reach the URL. A name may
// stand for any address, except the one that is reserved for this.
func isLoopback(text string) bool {
	host := hostOf(text).Hostname()
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

func isHTTPS(text string) bool { return strings.HasPrefix(text, "https://") }

// hostOf parses a URL that parseURL let pass.
func hostOf(text string) *url.URL {
	u, err := url.Parse(text)
	if err != nil {
		return &url.URL{}
	}
	return u
}
