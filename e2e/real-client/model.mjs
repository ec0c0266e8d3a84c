// The application of these tests: a small library with shelves, books and readers. Built from whichever version of the published
// package is under test.

export function makeModel({boolean, createBuilder, createSchema, defineMutator, defineMutators, defineQueries, defineQuery, json, number, relationships, string, table}) {
  const author = table('author').columns({id: string(), name: string()}).primaryKey('id');
  const book = table('book')
    .columns({
      id: string(),
      title: string(),
      lent: boolean(),
      pages: number(),
      authorID: string().from('author_id').optional(),
      bought: number().from('bought_at'),
      serial: number(),
      price: number(),
      weight: number().optional(),
      notes: json().optional(),
      printed: number().optional(),
      keywords: json().optional(),
    })
    .primaryKey('id');
  const review = table('review')
    .columns({id: string(), bookID: string().from('book_id'), text: string(), stars: number()})
    .primaryKey('id');
  const topic = table('topic').columns({id: string(), name: string()}).primaryKey('id');
  const bookTopic = table('bookTopic')
    .from('book_topic')
    .columns({bookID: string().from('book_id'), topicID: string().from('topic_id')})
    .primaryKey('bookID', 'topicID');

  const schema = createSchema({
    tables: [author, book, review, topic, bookTopic],
    relationships: [
      relationships(book, ({one, many}) => ({
        author: one({sourceField: ['authorID'], destField: ['id'], destSchema: author}),
        reviews: many({sourceField: ['id'], destField: ['bookID'], destSchema: review}),
        topics: many(
          {sourceField: ['id'], destField: ['bookID'], destSchema: bookTopic},
          {sourceField: ['topicID'], destField: ['id'], destSchema: topic},
        ),
      })),
      relationships(author, ({many}) => ({
        books: many({sourceField: ['id'], destField: ['authorID'], destSchema: book}),
      })),
    ],
  });
  const zql = createBuilder(schema);

  const queries = defineQueries({
    thickest: defineQuery(({args: {limit}}) => zql.book.where('lent', false).orderBy('pages', 'desc').limit(limit)),
    book: defineQuery(({args: {id}}) => zql.book.where('id', id).one()),
    card: defineQuery(({args: {id}}) =>
      zql.book
        .where('id', id)
        .related('author')
        .related('topics')
        .related('reviews', q => q.orderBy('stars', 'desc').limit(3))
        .one(),
    ),
    about: defineQuery(({args: {topic}}) => zql.book.whereExists('topics', q => q.where('name', topic)).orderBy('id', 'asc')),
    byOrAbout: defineQuery(({args: {author, topic}}) =>
      zql.book.where(({or, cmp, exists}) => or(cmp('authorID', author), exists('topics', q => q.where('name', topic)))),
    ),
    page: defineQuery(({args: {after, limit}}) => {
      const q = zql.book.orderBy('pages', 'asc').limit(limit);
      return after ? q.start(after) : q;
    }),
    titled: defineQuery(({args: {text}}) => zql.book.where('title', 'ILIKE', `%${text}%`)),
    among: defineQuery(({args: {ids}}) => zql.book.where('id', 'IN', ids)),
    unsigned: defineQuery(() => zql.book.where('authorID', 'IS', null)),
    // The browser may not run `not(exists())`; the API server narrows it.
    unreviewed: defineQuery(() => zql.book),
    shelf: defineQuery(() => zql.author.related('books', q => q.related('reviews').related('topics'))),
    library: defineQuery(() => zql.book.related('reviews')),
    secret: defineQuery(() => zql.book.where('id', 'b1')),
  });

  const mutators = defineMutators({
    book: {
      add: defineMutator(async ({tx, args}) => {
        await tx.mutate.book.insert({lent: false, bought: Date.UTC(2025, 5, 1), serial: 1, price: 9.5, ...args});
      }),
      retitle: defineMutator(async ({tx, args: {id, title}}) => {
        if (tx.location === 'server' && title.includes('banned')) throw new Error('this title is banned');
        await tx.mutate.book.update({id, title});
      }),
      lend: defineMutator(async ({tx, args: {id}}) => {
        await tx.mutate.book.update({id, lent: true});
      }),
      discard: defineMutator(async ({tx, args: {id}}) => {
        for (const r of await tx.run(zql.review.where('bookID', id))) await tx.mutate.review.delete({id: r.id});
        await tx.mutate.book.delete({id});
      }),
    },
    review: {
      // Its result says how often it ran.
      raise: defineMutator(async ({tx, args: {id}}) => {
        const review = await tx.run(zql.review.where('id', id).one());
        if (review) await tx.mutate.review.update({id, stars: review.stars + 1});
      }),
    },
  });
  return {schema, zql, queries, mutators};
}

export const TABLES = `
  CREATE TABLE author (id text PRIMARY KEY, name text NOT NULL);
  CREATE TABLE book (
    id text PRIMARY KEY, title varchar(200) NOT NULL, lent boolean NOT NULL, pages smallint NOT NULL, author_id text,
    bought_at timestamptz NOT NULL, serial bigint NOT NULL, price numeric(10,2) NOT NULL, weight real, notes jsonb, printed date,
    keywords text[]);
  CREATE TABLE review (id text PRIMARY KEY, book_id text NOT NULL, text text NOT NULL, stars integer NOT NULL);
  CREATE INDEX ON review (book_id);
  CREATE TABLE topic (id text PRIMARY KEY, name text NOT NULL);
  CREATE TABLE book_topic (book_id text, topic_id text, PRIMARY KEY (book_id, topic_id));
  INSERT INTO author SELECT 'a' || n, 'Author ' || n FROM generate_series(1, 6) n;
  INSERT INTO book SELECT 'b' || n, 'The book of ' || n, n % 4 = 0, n * 7, CASE WHEN n % 5 > 0 THEN 'a' || (n % 6 + 1) END,
    timestamptz '2023-03-04 05:06:07.25Z' + n * interval '1 day', 9007199254740900 + n, n * 2.25,
    CASE WHEN n % 2 = 1 THEN n * 0.5 END, CASE WHEN n % 3 = 0 THEN jsonb_build_object('shelf', n, 'marks', jsonb_build_array('x', n, null)) END,
    CASE WHEN n % 2 = 0 THEN date '2020-02-29' END, ARRAY['k' || n, 'common'] FROM generate_series(1, 50) n;
  INSERT INTO review SELECT 'r' || n, 'b' || (n % 35 + 1), 'Review ' || n, n % 6 FROM generate_series(1, 90) n;
  INSERT INTO topic SELECT 't' || n, 'topic ' || n FROM generate_series(1, 5) n;
  INSERT INTO book_topic SELECT 'b' || n, 't' || (n % 5 + 1) FROM generate_series(1, 50) n WHERE n % 4 > 0;
  INSERT INTO book_topic SELECT 'b' || n, 't5' FROM generate_series(1, 50) n WHERE n % 7 = 0 ON CONFLICT DO NOTHING;`;
