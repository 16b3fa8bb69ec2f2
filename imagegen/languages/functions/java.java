import java.io.*;
import java.lang.reflect.*;
import java.nio.*;
import java.nio.charset.*;
import java.security.SecureRandom;
import java.util.*;

/**
 * Loads a function, {@code MayflyFunction CLASS.METHOD}, and serves requests to it over descriptor 3 (agent/PROTOCOL.md, "Functions").
 * Compiles with Java 17.
 */
class MayflyFunction {
    private static final int REQUEST = 1, LOADED = 0, ANSWER = 1, EXCEPTION = 2;
    private static final int MAX_PAYLOAD = 6 << 20, MAX_TEXT = 64 << 10;
    private static final String JSON = "application/json", TEXT = "text/plain; charset=utf-8";

    private final DataInputStream requests;
    private final OutputStream answers;

    private MayflyFunction(FileDescriptor channel) {
        requests = new DataInputStream(new BufferedInputStream(new FileInputStream(channel)));
        answers = new FileOutputStream(channel);
    }

    public static void main(String[] args) throws Exception {
        Handler handler;
        MayflyFunction function;
        try {
            Constructor<FileDescriptor> ofNumber = FileDescriptor.class.getDeclaredConstructor(int.class);
            ofNumber.setAccessible(true);
            function = new MayflyFunction(ofNumber.newInstance(3));
            handler = load(args[0]);
        } catch (InvocationTargetException | ExceptionInInitializerError error) {
            fail(error.getCause());
            return;
        } catch (LinkageError | ReflectiveOperationException | IllegalArgumentException error) {
            fail(error);
            return;
        }
        System.gc(); // what is no longer used would be part of the snapshot
        function.serve(handler);
        System.exit(0); // whatever threads it has left
    }

    private static void fail(Throwable error) {
        System.out.flush();
        System.err.println("the function cannot be loaded: " + (error instanceof IllegalArgumentException ? error.getMessage() : trace(error)));
        System.exit(1);
    }

    private interface Handler {
        Object call(byte[] payload) throws Throwable;
    }

    private static Handler load(String entry) throws ReflectiveOperationException {
        int dot = entry.lastIndexOf('.');
        if (dot < 1) throw new IllegalArgumentException("the entry is " + entry + "; it must be CLASS.METHOD, such as Handler.handle");
        String name = entry.substring(dot + 1);
        Class<?> type;
        try {
            type = Class.forName(entry.substring(0, dot));
        } catch (ClassNotFoundException error) {
            throw new IllegalArgumentException("the entry is " + entry + ", and there is no such class");
        }
        for (Class<?> takes : List.of(byte[].class, String.class)) {
            Method method;
            try {
                method = type.getDeclaredMethod(name, takes);
            } catch (NoSuchMethodException error) {
                continue;
            }
            method.setAccessible(true);
            Object instance = null;
            if (!Modifier.isStatic(method.getModifiers())) {
                Constructor<?> maker = type.getDeclaredConstructor();
                maker.setAccessible(true);
                instance = maker.newInstance();
            }
            Object on = instance;
            return payload -> {
                try {
                    return method.invoke(on, takes == String.class ? text(payload) : payload);
                } catch (InvocationTargetException error) {
                    throw error.getCause();
                }
            };
        }
        throw new IllegalArgumentException(
            "the entry is " + entry + ", and the class has no such method that takes byte[] or String");
    }

    private static String text(byte[] payload) throws CharacterCodingException {
        return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(payload)).toString();
    }

    private void serve(Handler handler) throws IOException {
        send(LOADED, 0, 0, "", new byte[0]);
        for (;;) {
            byte[] header = requests.readNBytes(7);
            if (header.length < 7) return;
            ByteBuffer fields = ByteBuffer.wrap(header).order(ByteOrder.LITTLE_ENDIAN);
            int kind = fields.get(), id = fields.getInt();
            requests.readNBytes(Short.toUnsignedInt(fields.getShort())); // the content type, which a handler is not told
            byte[] payload = requests.readNBytes(Integer.reverseBytes(requests.readInt()));
            if (kind != REQUEST) {
                reseed();
                continue;
            }
            long began = System.nanoTime();
            int outcome = ANSWER;
            String type = "";
            byte[] answer;
            try {
                Object found = handler.call(payload);
                if (found instanceof byte[] bytes) answer = bytes;
                else if (found instanceof String words) {
                    answer = words.getBytes(StandardCharsets.UTF_8);
                    type = TEXT;
                } else throw new ClassCastException("a function returns byte[] or String, not " + (found == null ? null : found.getClass().getName()));
                if (answer.length > MAX_PAYLOAD) {
                    throw new IllegalStateException("the answer has " + answer.length + " bytes; at most " + MAX_PAYLOAD + " can be sent");
                }
            } catch (Throwable error) { // a stack that is too deep and memory that is short, too
                outcome = EXCEPTION;
                type = JSON;
                answer = described(error);
            }
            long took = (System.nanoTime() - began) / 1000;
            System.out.flush();
            System.err.flush();
            send(outcome, id, took, type, answer);
        }
    }

    private void send(int kind, int id, long took, String type, byte[] payload) throws IOException {
        byte[] name = type.getBytes(StandardCharsets.US_ASCII);
        ByteBuffer message = ByteBuffer.allocate(15 + name.length + 4 + payload.length).order(ByteOrder.LITTLE_ENDIAN);
        message.put((byte) kind).putInt(id).putLong(took).putShort((short) name.length).put(name).putInt(payload.length).put(payload);
        answers.write(message.array());
    }

    /** An exception as JSON. */
    private static byte[] described(Throwable error) {
        String message = "its message cannot be had", trace = "";
        try {
            message = String.valueOf(error.getMessage());
            trace = trace(error);
        } catch (Throwable second) {
            // one that does not want to be shown
        }
        String text = "{\"error\":" + quoted(error.getClass().getName()) + ",\"message\":" + quoted(message) + ",\"trace\":" + quoted(trace) + "}";
        return text.getBytes(StandardCharsets.UTF_8);
    }

    /** A trace without the frames that are ours. */
    private static String trace(Throwable error) {
        StringWriter text = new StringWriter();
        error.printStackTrace(new PrintWriter(text));
        StringBuilder kept = new StringBuilder();
        for (String line : text.toString().split("\n")) {
            if (!line.contains("at MayflyFunction") && !line.contains("at java.base/jdk.internal.reflect.")
                && !line.contains("at java.base/java.lang.reflect.Method.invoke")) kept.append(line).append('\n');
        }
        return kept.toString();
    }

    /** A text, or its beginning, as JSON. */
    private static String quoted(String text) {
        StringBuilder found = new StringBuilder("\"");
        for (char letter : text.substring(0, Math.min(text.length(), MAX_TEXT)).toCharArray()) {
            if (letter == '"' || letter == '\\') found.append('\\').append(letter);
            else if (letter < ' ' || Character.isSurrogate(letter)) found.append(String.format("\\u%04x", (int) letter));
            else found.append(letter);
        }
        return found.append('"').toString();
    }

    /** Give a clone of a snapshot random numbers of its own, where they are made in the process. SecureRandom asks the kernel. */
    private static void reseed() {
        try {
            long seed = new SecureRandom().nextLong();
            Math.random(); // makes its generator
            Field ofMath = Class.forName("java.lang.Math$RandomNumberGeneratorHolder").getDeclaredField("randomNumberGenerator");
            ofMath.setAccessible(true);
            ((Random) ofMath.get(null)).setSeed(seed);
            Class<?> local = Class.forName("java.util.concurrent.ThreadLocalRandom");
            Field seeder = local.getDeclaredField("seeder");
            seeder.setAccessible(true);
            ((java.util.concurrent.atomic.AtomicLong) seeder.get(null)).set(seed);
            Method begin = local.getDeclaredMethod("localInit"); // of this thread, which calls the function
            begin.setAccessible(true);
            begin.invoke(null);
        } catch (ReflectiveOperationException | RuntimeException error) {
            System.err.println("random numbers of this clone are those of others: " + error);
        }
    }
}
