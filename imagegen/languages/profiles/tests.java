import java.io.*;
import java.nio.file.*;
import java.util.*;
import org.junit.platform.engine.*;
import org.junit.platform.engine.discovery.*;
import org.junit.platform.launcher.*;
import org.junit.platform.launcher.core.*;

/** Run JUnit's tests and put out how each went, as lines of mayfly/runs/tested.py. Arguments: the folder of classes. */
class MayflyTests implements TestExecutionListener {
    private final PrintStream out = System.out;
    private final PrintStream err = System.err;
    private final Map<String, Long> began = new HashMap<>();
    private ByteArrayOutputStream said = new ByteArrayOutputStream();
    private boolean failed;
    private boolean told;
    private volatile String running;

    public static void main(String[] args) {
        MayflyTests listener = new MayflyTests();
        LauncherDiscoveryRequest request = LauncherDiscoveryRequestBuilder.request()
            .selectors(DiscoverySelectors.selectClasspathRoots(Set.of(Path.of(args[0])))).build();
        // A test that ends the program has not passed.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> { if (listener.running != null) Runtime.getRuntime().halt(1); }));
        int status = 1; // threads that tests left do not keep the program, whatever JUnit throws
        try {
            LauncherFactory.create().execute(request, listener);
            if (!listener.told) listener.err.println("there are no tests: JUnit finds none in these classes");
            status = listener.failed || !listener.told ? 1 : 0;
        } catch (Throwable error) {
            if (listener.running != null) listener.ended(listener.running, "error", error.toString(), 0, listener.said.toString());
            error.printStackTrace(listener.err);
        } finally {
            listener.running = null;
            System.out.flush();
            System.exit(status);
        }
    }

    private static String name(TestIdentifier test) {
        TestSource source = test.getSource().orElse(null);
        if (source instanceof org.junit.platform.engine.support.descriptor.MethodSource) {
            var method = (org.junit.platform.engine.support.descriptor.MethodSource) source;
            String shown = test.getDisplayName();
            String plain = method.getMethodName() + "()";
            boolean one = Set.of(plain, method.getMethodName()).contains(shown) || test.getLegacyReportingName().equals(plain);
            return method.getClassName() + "." + method.getMethodName() + (one ? "" : " " + shown);
        }
        return test.getDisplayName();
    }

    public void executionStarted(TestIdentifier test) {
        if (!test.isTest()) return;
        began.put(test.getUniqueId(), System.nanoTime());
        running = name(test);
        put("{\"name\":" + json(running) + "}");
        said = new ByteArrayOutputStream();
        PrintStream held = new PrintStream(said, true);
        System.setOut(held);
        System.setErr(held);
    }

    public void executionFinished(TestIdentifier test, TestExecutionResult result) {
        System.setOut(out);
        System.setErr(out);
        if (test.isTest()) running = null;
        Throwable error = result.getThrowable().orElse(null);
        boolean passed = result.getStatus() == TestExecutionResult.Status.SUCCESSFUL;
        if (!test.isTest() && passed) return;
        failed |= result.getStatus() == TestExecutionResult.Status.FAILED;
        boolean late = error != null && String.valueOf(error.getMessage()).contains(" timed out after "); // as JUnit has it
        String outcome = passed ? "passed" : result.getStatus() == TestExecutionResult.Status.ABORTED ? "skipped" : late ? "timeout"
            : error instanceof AssertionError ? "failed" : "error";
        boolean plain = error instanceof AssertionError || result.getStatus() == TestExecutionResult.Status.ABORTED;
        String message = error == null ? "" : plain && error.getMessage() != null ? error.getMessage() : error.toString();
        long now = System.nanoTime();
        double ms = (now - began.getOrDefault(test.getUniqueId(), now)) / 1e6;
        ended(name(test), outcome, message, ms, said.toString());
    }

    public void executionSkipped(TestIdentifier test, String reason) {
        ended(name(test), "skipped", reason, 0, "");
    }

    private void put(String line) {
        out.print("\u001e" + line + "\n");
        out.flush();
    }

    private void ended(String name, String outcome, String message, double ms, String output) {
        told = true;
        put(String.format(Locale.ROOT, "{\"name\":%s,\"outcome\":\"%s\",\"message\":%s,\"wall_ms\":%.3f,\"output\":%s}",
            json(name), outcome, json(message), ms, json(output)));
    }

    private static String json(String text) {
        StringBuilder found = new StringBuilder("\"");
        for (char letter : text.substring(0, Math.min(text.length(), 65536)).toCharArray()) {
            if (letter == '"' || letter == '\\') found.append('\\').append(letter);
            else if (letter < ' ' || Character.isSurrogate(letter)) found.append(String.format("\\u%04x", (int) letter));
            else found.append(letter);
        }
        return found.append('"').toString();
    }
}
