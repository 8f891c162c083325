package peers

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Limits of a member's list of URLs.
const (
	maxURLs     = 16
	maxURLBytes = 512
)

// ValidateURLs reports everything that is wrong with a member's URLs: it
// takes at least one, each http://host:port or https://host:port and nothing
// more. Link-local addresses are refused because they belong to one machine's
// network card, and to the metadata services of cloud machines.
func ValidateURLs(urls []string) error {
	if len(urls) == 0 {
		return errors.New("no URL given")
	}
	if len(urls) > maxURLs {
		return fmt.Errorf("%d URLs given, the limit is %d", len(urls), maxURLs)
	}
	var errs []error
	for _, u := range urls {
		if err := validateURL(u); err != nil {
			errs = append(errs, fmt.Errorf("URL %.100q: %w", withoutUser(u), err))
		}
	}
	return errors.Join(errs...)
}

// withoutUser keeps passwords out of messages.
func withoutUser(raw string) string {
	if at := strings.LastIndexByte(raw, '@'); at >= 0 {
		return "..." + raw[at:]
	}
	return raw
}

func validateURL(raw string) error {
	if len(raw) > maxURLBytes {
		return fmt.Errorf("longer than %d bytes", maxURLBytes)
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("contains spaces or characters outside of ASCII")
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return errors.New("is not a URL") // the parser's own error repeats the URL, password included
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("the scheme must be http or https")
	case u.User != nil:
		return errors.New("must not contain a user or password")
	case u.Opaque != "" || u.Path != "" || strings.ContainsAny(raw, "?#"):
		return errors.New("must end after host:port, without path, query or fragment")
	}
	if err := validatePort(u.Port()); err != nil {
		return err
	}
	return validateHost(u.Hostname())
}

func validatePort(port string) error {
	if port == "" {
		return errors.New("the port is missing")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("the port must be between 1 and 65535")
	}
	return nil
}

func validateHost(host string) error {
	if host == "" {
		return errors.New("the host is missing")
	}
	ip, err := netip.ParseAddr(host)
	if err == nil {
		if ip.Unmap().IsLinkLocalUnicast() {
			return errors.New("link-local addresses are not allowed")
		}
		return nil
	}
	if strings.Contains(host, ":") {
		return errors.New("the host is not an address")
	}
	// Some resolvers read 2852039166, 0xa9fe.1 and 169.254.1 as addresses.
	if last := host[strings.LastIndexByte(strings.TrimSuffix(host, "."), '.')+1:]; looksNumeric(last) {
		return errors.New("the host ends in a number but is not an IPv4 address")
	}
	return nil
}

// looksNumeric reports whether a resolver may take the last label of a
// host for a number.
func looksNumeric(label string) bool {
	label = strings.TrimSuffix(label, ".")
	_, err := strconv.ParseUint(label, 0, 64)
	return err == nil || label != "" && strings.Trim(label, "0123456789") == ""
}
