// Package ui drives the web page in a real browser, headless Chromium, as people do: with
// the mouse, with the keyboard alone, on a phone, against real nodes.
//
// The tests run with KVD_E2E set, and need Chromium: KVD_CHROMIUM names it, or it is
// looked for. With KVD_UI_SHOTS, the screenshots are kept in that directory.
// KVD_E2E=huge measures the first view of a store with a million keys.
package ui

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

var (
	// binary is the kvd under test.
	binary string
	// browser is the one Chromium of the run, in whose tabs the tests work.
	browser context.Context
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run builds the binary and starts the browser once for all tests.
func run(m *testing.M) int {
	if why := missing(); why != "" {
		fmt.Fprintf(os.Stderr, "SKIPPED: the tests of the web page: %s\n", why)
		if os.Getenv("KVD_UI_REQUIRED") != "" {
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "kvd-ui-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "kvd")
	build := exec.Command("go", "build", "-o", binary, "./cmd/kvd")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build kvd: %v\n%s", err, out)
		return 1
	}
	stop := startBrowser()
	defer stop()
	if err := chromedp.Do(browser); err != nil {
		fmt.Fprintln(os.Stderr, "start the browser:", err)
		return 1
	}
	return m.Run()
}

// missing says why the tests cannot run, or "".
func missing() string {
	if os.Getenv("KVD_E2E") == "" {
		return "set KVD_E2E=full to run them"
	}
	if chromium() == "" {
		return "there is no Chromium; install it (apt-get install chromium) or name it in KVD_CHROMIUM"
	}
	return ""
}

// chromium returns the path of the browser, or "".
func chromium() string {
	for _, name := range []string{os.Getenv("KVD_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	return ""
}

// startBrowser prepares the browser, which the first use starts. Root may not use
// Chromium's sandbox, and CI often is root; the only pages it sees are kvd's.
func startBrowser() (stop func()) {
	ctx, end := chromedp.NewContext(context.Background(),
		chromedp.WithAllocatorOptions(chromedp.ExecPath(chromium()), chromedp.NoSandbox, chromedp.Flag("lang", "en-US")))
	browser = ctx
	return end
}
