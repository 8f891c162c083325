package main

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"
)

// maxID is the greatest member id: one that a JSON number holds exactly.
const maxID = 1<<53 - 1

// into makes a table row's store function of a field and a parser.
func into[T any](field func(*settings) *T, parse func(string) (T, error)) func(*settings, string) error {
	return func(s *settings, text string) error {
		v, err := parse(text)
		if err == nil {
			*field(s) = v
		}
		return err
	}
}

func parseText(text string) (string, error) {
	if text == "" {
		return "", errors.New("the value is empty")
	}
	return text, nil
}

func parseID(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < 1 || n > maxID {
		return 0, fmt.Errorf("%q is no number between 1 and 2^53-1", text)
	}
	return n, nil
}

func parsePort(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port between 1 and 65535", text)
	}
	return n, nil
}

// parseURL takes the URL of a listener: scheme, host and port, nothing else.
func parseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%q is no URL such as %s", text, defaultClientURL)
	}
	switch {
	case u.Scheme != "http":
		return "", fmt.Errorf("%q does not begin with http://, which is all that this version speaks", text)
	case u.Hostname() == "" || u.Port() == "":
		return "", fmt.Errorf("%q lacks the host or the port", text)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", fmt.Errorf("%q has more than scheme, host and port", text)
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); err != nil {
		return "", fmt.Errorf("%q has a port beyond 65535", text)
	}
	return "http://" + u.Host, nil
}

func parseURLs(text string) ([]string, error) {
	var urls []string
	for part := range strings.SplitSeq(text, ",") {
		u, err := parseURL(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if slices.Contains(urls, u) {
			return nil, fmt.Errorf("%s is listed twice", u)
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// storeJoin takes raftexample's switch or URLs.
func storeJoin(s *settings, text string) error {
	if on, err := strconv.ParseBool(text); err == nil {
		s.join = on
		return nil
	}
	urls, err := parseURLs(text)
	s.joinURLs = urls
	return err
}

func oneOf(choices ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if !slices.Contains(choices, text) {
			return "", fmt.Errorf("%q is none of %s", text, strings.Join(choices, ", "))
		}
		return text, nil
	}
}

func parseSwitch(text string) (bool, error) {
	switch text {
	case "on", "true":
		return true, nil
	case "off", "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither on nor off", text)
}

func parseLevel(text string) (zapcore.Level, error) {
	level, err := zapcore.ParseLevel(text)
	if err != nil || level > zapcore.ErrorLevel {
		return 0, fmt.Errorf("%q is none of debug, info, warn, error", text)
	}
	return level, nil
}

// parseDuration insists on a unit: a bare number would mean milliseconds to a
// user of etcd and seconds to one of kvd's HTTP parameters.
func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is no duration such as 500ms or 2s", text)
	}
	return d, nil
}

// units of sizes, longest names first.
var units = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

func parseSize(text string) (int64, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		return n, nil
	}
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err == nil && n >= 0 && n*u.bytes < math.MaxInt64 {
			return int64(n * u.bytes), nil
		}
		break
	}
	return 0, fmt.Errorf("%q is no size such as 1048576, 512KiB or 8GiB", text)
}
